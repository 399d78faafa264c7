"""A SLURM for the session, and what its jobs work on."""

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = missing_programs()
    if missing or os.geteuid() != 0:
        reason = f"SLURM tests need {', '.join(missing)}" if missing else "SLURM tests need root: slurmd does"
        if os.environ.get("HVDYOLO_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
