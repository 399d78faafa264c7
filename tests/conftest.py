"""Datasets that tests share."""

import os
from pathlib import Path

import pytest

from hvdyolo.data.pack import PackSettings, pack
from hvdyolo.data.sources.voc import VocSource
from hvdyolo.data.sources.yolo import YoloSource
from hvdyolo.data.synth import write_dataset

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The BCCD photographs, a VOC folder."""
    data = Path(os.environ.get("HVDYOLO_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = data / "bccd"
    if not path.is_dir():
        pytest.skip(f"no BCCD photographs at {path}; set HVDYOLO_TEST_DATA to the folder that holds bccd/")
    return path


@pytest.fixture(scope="session")
def packed_bccd(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of BCCD, packed."""
    out = tmp_path_factory.mktemp("packed") / "bccd"
    pack(VocSource(bccd), out, PackSettings(), workers=2)
    return out


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn training images of 4 classes and 32 for validation, packed."""
    source = tmp_path_factory.mktemp("drawn") / "source"
    write_dataset(source, images=40, classes=4, seed=0)
    out = tmp_path_factory.mktemp("packed") / "synthetic"
    pack(YoloSource(source), out, PackSettings(), workers=2)
    return out
