"""Small images, samples and shards to do things with."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data.format import index_name
from hvdyolo.data.manifest import build_manifest, write_manifest
from hvdyolo.data.read_back import read_back
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter

NAMES = ("cat", "dog", "emu")


def picture(seed: int, width: int = 24, height: int = 16) -> np.ndarray:
    """Noise that no compression makes equal to another's."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encode a picture, given by its seed or pixels, as Pillow would save it."""

    def encode(what: int | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
        pixels = picture(what) if isinstance(what, int) else what
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()

    return encode


@pytest.fixture
def samples(encode: Callable[..., bytes]) -> Callable[[int], list[Sample]]:
    """Samples whose every value tells which one it is; sample i has i % 4 boxes."""

    def build(count: int, first: int = 0) -> list[Sample]:
        return [
            Sample(
                encoded=encode(number),
                format="PNG",
                width=24,
                height=16,
                source_width=240 + number,
                source_height=160 + number,
                labels=np.array(
                    [[row % 3, 0.5, 0.25, (row + 1) / 8, 1 / (number + 2)] for row in range(number % 4)],
                    dtype=np.float32,
                ).reshape(-1, 5),
                flags=np.arange(number % 4, dtype=np.uint8),
                name=f"folder/ü{number}.png",
                sample_id=1000 + number,
            )
            for number in range(first, first + count)
        ]

    return build


@dataclass(frozen=True)
class Packed:
    """A packed dataset and the samples that went into its split ``train``, in order."""

    root: Path
    samples: list[Sample]
    records: list[ShardRecord]


def write_shard(root: Path, name: str, samples: Sequence[Sample], number: int = 0) -> ShardRecord:
    """Write one shard of the split ``train``."""
    description = ShardDescription("train", number, NAMES, {"max_side": None})
    with ShardWriter(root / name, description, root) as writer:
        for sample in samples:
            writer.add(sample)
    assert writer.record is not None
    return writer.record


@pytest.fixture
def packed(tmp_path: Path, samples: Callable[..., list[Sample]]) -> Callable[..., Packed]:
    """Write a dataset of some shards with a few samples each; without index files, as it was done once."""

    def build(shards: int = 1, each: int = 5, index: bool = True) -> Packed:
        root = tmp_path / "packed"
        root.mkdir()
        everything = samples(shards * each)
        records = [
            write_shard(
                root,
                f"train-{number:05d}-of-{shards:05d}.h5",
                everything[number * each : (number + 1) * each],
                number,
            )
            for number in range(shards)
        ]
        found = read_back(root, root, NAMES, {"train": records})
        settings = {"max_side": None}
        indexes = found.indexes if index else {}
        if not index:
            (root / index_name("train")).unlink()
        write_manifest(build_manifest(found.dataset_id, NAMES, {"train": records}, settings, indexes), root)
        return Packed(root, everything, records)

    return build
