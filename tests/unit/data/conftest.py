"""Small images, samples and shards to do things with."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data.format import polygons_name
from hvdyolo.data.manifest import build_manifest, write_manifest
from hvdyolo.data.outlines import Outlines, encode_outlines
from hvdyolo.data.polygon_file import write_polygons
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


def outlined(sample: Sample) -> tuple[Sample, Outlines]:
    """The sample with its boxes left of the middle, and a rhombus in each but every third of them."""
    labels = sample.labels * (1, 0.6, 1, 1, 1)
    rhombus = np.array([[0, -0.5], [0.5, 0], [0, 0.5], [-0.5, 0]])
    outlines = [
        [(box[:2] + rhombus * box[2:]).astype(np.float32)] if row % 3 != 2 else []
        for row, box in enumerate(labels[:, 1:])
    ]
    return replace(sample, labels=labels.astype(np.float32)), outlines


@dataclass(frozen=True)
class Packed:
    """A packed dataset and the samples that went into its split ``train``, in order."""

    root: Path
    samples: list[Sample]
    records: list[ShardRecord]
    outlines: list[Outlines]


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
    """Write a dataset of some shards with a few samples each; with polygons, boxes are elsewhere."""

    def build(shards: int = 1, each: int = 5, polygons: bool = False) -> Packed:
        root = tmp_path / "packed"
        root.mkdir()
        everything = samples(shards * each)
        outlines: list[Outlines] = []
        kept = {}
        if polygons:
            pairs = list(map(outlined, everything))
            everything, outlines = [sample for sample, _ in pairs], [outlines for _, outlines in pairs]
            entries = [encode_outlines(found, sample.sample_id) for sample, found in pairs]
            kept["train"] = write_polygons(root / polygons_name("train"), root, entries)
        records = [
            write_shard(
                root,
                f"train-{number:05d}-of-{shards:05d}.h5",
                everything[number * each : (number + 1) * each],
                number,
            )
            for number in range(shards)
        ]
        dataset_id = read_back(root, NAMES, {"train": records}, kept)
        write_manifest(build_manifest(dataset_id, NAMES, {"train": records}, {"max_side": None}, kept), root)
        return Packed(root, everything, records, outlines)

    return build
