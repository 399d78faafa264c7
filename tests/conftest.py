"""Datasets that several tests read."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from hvdyolo.data.pack import main as pack
from hvdyolo.data.synth import write_dataset

# No test asserts times, and a property does not become false on a busy machine.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The BCCD photographs, as their VOC folder."""
    folder = Path(os.environ.get("HVDYOLO_TEST_DATA", REPOSITORY / ".." / "shared" / "data")) / "bccd"
    if not (folder / "JPEGImages").is_dir():
        pytest.skip(f"no BCCD photographs in {folder}; HVDYOLO_TEST_DATA names the folder that holds bccd")
    return folder.resolve()


@pytest.fixture(scope="session")
def packed_bccd(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of BCCD, packed; not to be changed."""
    out = tmp_path_factory.mktemp("bccd") / "packed"
    assert pack(["--source", "voc", "--root", str(bccd), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 32 validation pictures of 4 classes, in YOLO's layout; not to be changed."""
    out = tmp_path_factory.mktemp("drawn") / "source"
    write_dataset(out, images=40, classes=4, seed=0)
    return out


@pytest.fixture(scope="session")
def synthetic(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``drawn``, packed into one shard a split; not to be changed."""
    out = tmp_path_factory.mktemp("synthetic") / "packed"
    assert pack(["--source", "yolo", "--root", str(drawn), "--out", str(out)]) == 0
    return out
