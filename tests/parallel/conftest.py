"""Tests that run on every rank of a job, or on the only one there is.

Started as ``mpirun -np N python -m pytest tests/parallel`` they use Horovod; started alone, the one-process
form. A rank whose test fails leaves the others waiting in a collective, so it ends them all.
"""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

from hvdyolo.config import DistributedConfig
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.launch import open_communicator


@pytest.fixture(scope="session")
def comm() -> Iterator[Communicator]:
    """This job's ranks. A short cycle: tests send many small things."""
    communicator = open_communicator(DistributedConfig(cycle_time=1.0))
    # As in a job, where ranks share the cores of a host: the default of all cores a rank is ten times slower.
    torch.set_num_threads(1)
    yield communicator
    communicator.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    communicator = item.funcargs.get("comm") if isinstance(item, pytest.Function) else None
    if report.failed and communicator is not None and communicator.world.size > 1:
        # Past pytest's capture: nothing is printed after this.
        os.write(2, f"rank {communicator.world.rank}: {item.nodeid}\n{report.longreprtext}\n".encode())
        sys.stdout.flush()
        communicator.abort(1)
