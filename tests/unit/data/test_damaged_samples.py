"""What a damaged sample does to training: nothing but what ``loader.damaged`` says, on any ranks and workers.

Each sample is one solid colour and has one box of a class of its own, so pixels and labels tell where they
come from.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.evaluation_loader import EvaluationLoader
from hvdyolo.data.images import ImageTooLargeError
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.manifest import build_manifest, write_manifest
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter
from hvdyolo.objective.assign import Assigner
from hvdyolo.utils.errors import DataError

COUNT, SHARDS, BATCH, SIZE, GREY = 20, 2, 8, 64, 114
DAMAGED = (3, 8, 17)
PLAIN = AugmentConfig(mosaic=0.0)
MOSAIC = AugmentConfig(scale=0.9, translate=0.4)  # strong enough for samples to be out of sight of themselves
ASSIGN = Assigner((8, 16, 32), np.full((3, 3, 2), 16.0), 4.0)

Write = Callable[..., Path]


def colour(sample: int) -> int:
    """Far from each other's and from the grey of empty places."""
    return 120 + 6 * sample


def solid(number: int) -> Sample:
    """A sample whose pixels and only label say which one it is."""
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (colour(number),) * 3).save(stream, "PNG")
    return Sample(
        encoded=stream.getvalue(),
        format="PNG",
        width=24,
        height=16,
        source_width=24,
        source_height=16,
        labels=np.array([[number, 0.5, 0.5, 0.8, 0.8]], dtype=np.float32),
        flags=np.zeros(1, dtype=np.uint8),
        name=f"folder/{number}.png",
        sample_id=number,
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Pack solid samples in two shards, some of them changed beforehand."""

    def write(changes: Mapping[int, Mapping[str, Any]] | None = None) -> Path:
        root = tmp_path / "packed"
        root.mkdir()
        names = tuple(map(str, range(COUNT)))
        records: list[ShardRecord] = []
        for shard in range(SHARDS):
            description = ShardDescription("train", shard, names, {})
            path = root / f"train-{shard:05d}-of-{SHARDS:05d}.h5"
            with ShardWriter(path, description, root) as writer:
                for number in range(shard * COUNT // SHARDS, (shard + 1) * COUNT // SHARDS):
                    writer.add(replace(solid(number), **(changes or {}).get(number, {})))
            assert writer.record is not None
            records.append(writer.record)
        write_manifest(build_manifest("0" * 32, names, {"train": records}, {}), root)
        return root

    return write


def damage(root: Path, samples: tuple[int, ...] = DAMAGED) -> None:
    """Flip a bit in the middle of each of some samples."""
    for sample in samples:
        encoded = solid(sample).encoded
        path = root / f"train-{sample // (COUNT // SHARDS):05d}-of-{SHARDS:05d}.h5"
        raw = bytearray(path.read_bytes())
        start = raw.find(encoded)
        assert start >= 0
        raw[start + len(encoded) // 2] ^= 1
        path.write_bytes(raw)


@dataclass(frozen=True)
class Stream:
    """All slots of some epochs in their order, ``steps`` batches, and what was said of them."""

    samples: list[int]
    weights: list[float]
    images: list[np.ndarray]
    labels: list[np.ndarray]
    matches: list[list[int]]
    damaged: dict[int, str]
    skipped: int
    steps: int


def load(
    root: Path, augment: AugmentConfig, *, ranks: int = 1, workers: int = 0, epochs: int = 1, **settings: Any
) -> Stream:
    """The first epochs as all ranks together load them."""
    plan = BatchPlan(samples=COUNT, batch=BATCH, seed=1)
    config = LoaderConfig(image_size=SIZE, workers=workers, **({"damaged": "skip"} | settings))
    split = PackedSplit(root, "train", verify=config.verify)
    shares: list[list[TrainBatch[Any]]] = []
    for rank in range(ranks):
        loader = TrainLoader(split, plan, config, augment, ASSIGN, rank=rank, size=ranks, epochs=epochs)
        with loader:
            shares.append(list(loader))
    assert len({len(share) for share in shares}) == 1, "ranks differ in their number of steps"
    batches = [share[step] for step in range(len(shares[0])) for share in shares]
    return Stream(
        samples=[sample for batch in batches for sample in batch.samples],
        weights=[weight for batch in batches for weight in batch.weights.tolist()],
        images=[image for batch in batches for image in batch.images.numpy()],
        labels=[labels for batch in batches for labels in batch.labels],
        matches=[[len(level.cell) for part in batch.matches for level in part] for batch in batches],
        damaged={sample: reason for batch in batches for sample, reason in batch.damaged.items()},
        skipped=sum(batch.skipped for batch in batches),
        steps=len(shares[0]),
    )


def assert_masked(stream: Stream, slot: int) -> None:
    assert stream.weights[slot] == 0
    assert (stream.images[slot] == GREY).all()
    assert stream.labels[slot].shape == (0, 5)


def test_a_damaged_sample_costs_its_slot_and_nothing_else(write: Write) -> None:
    root = write()
    whole = load(root, PLAIN)
    damage(root)
    found = load(root, PLAIN)
    assert found.samples == whole.samples
    assert found.steps == whole.steps == 3
    for slot, sample in enumerate(whole.samples):
        if sample in DAMAGED:
            assert_masked(found, slot)
        else:
            assert found.weights[slot] == whole.weights[slot]
            np.testing.assert_array_equal(found.images[slot], whole.images[slot])
            np.testing.assert_array_equal(found.labels[slot], whole.labels[slot])
    # The last batch has four slots that only fill it; a damaged sample in them was counted in its turn.
    assert whole.weights.count(0) == 4
    assert found.skipped == len(DAMAGED)
    assert sum(found.weights) == COUNT - len(DAMAGED)


def test_a_damaged_filler_is_named_but_not_counted_again(write: Write) -> None:
    root = write()
    plan = BatchPlan(samples=COUNT, batch=BATCH, seed=1)
    filler = plan.entries(0, 2, range(BATCH))[-1]
    assert filler.weight == 0
    damage(root, (filler.sample,))
    found = load(root, PLAIN)
    assert [slot for slot, sample in enumerate(found.samples) if sample == filler.sample][-1] == 23
    assert_masked(found, 23)
    assert (found.skipped, list(found.damaged)) == (1, [filler.sample])


def test_a_damaged_partner_leaves_its_tile_grey_and_brings_no_labels(write: Write) -> None:
    root = write()
    whole = load(root, MOSAIC, epochs=6)
    damage(root)
    found = load(root, MOSAIC, epochs=6)
    masked = unseen = partners = 0
    for slot, sample in enumerate(whole.samples):
        image, labels = whole.images[slot], whole.labels[slot]
        # A solid picture that shows is there in its colour.
        if sample in DAMAGED and (image == colour(sample)).any():
            assert_masked(found, slot)
            masked += 1
            continue
        # One out of its own sight was not looked at, whatever other slots have seen of it.
        unseen += sample in DAMAGED
        gone = np.isin(image, [colour(number) for number in DAMAGED])
        np.testing.assert_array_equal(found.images[slot], np.where(gone, GREY, image))
        np.testing.assert_array_equal(found.labels[slot], labels[~np.isin(labels[:, 0], DAMAGED)])
        assert found.weights[slot] == whole.weights[slot]
        partners += bool(gone.any())
    # Or the test has not seen what it is about.
    assert (masked > 0, unseen > 0, partners > 10) == (True, True, True)


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (8, 0), (1, 3), (2, 2)])
def test_ranks_and_workers_change_nothing(write: Write, ranks: int, workers: int) -> None:
    root = write()
    damage(root)
    alone, shared = load(root, MOSAIC), load(root, MOSAIC, ranks=ranks, workers=workers)
    assert (shared.samples, shared.weights, shared.steps) == (alone.samples, alone.weights, alone.steps)
    assert (shared.skipped, shared.damaged) == (alone.skipped, alone.damaged)
    np.testing.assert_array_equal(np.stack(shared.images), np.stack(alone.images))
    for one, other in zip(shared.labels, alone.labels, strict=True):
        np.testing.assert_array_equal(one, other)
    # Numbers by which losses are divided.
    assert sum(map(sum, shared.matches)) == sum(map(sum, alone.matches)) > 0


def test_each_is_named_by_shard_record_and_file(write: Write) -> None:
    root = write()
    damage(root)
    assert load(root, PLAIN).damaged == {
        sample: f"{root}/train-0000{sample // 10}-of-00002.h5: sample {sample % 10} (folder/{sample}.png) "
        "is damaged; copy the shard again."
        for sample in DAMAGED
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_by_default_it_is_raised(write: Write, workers: int) -> None:
    root = write()
    damage(root, (17,))
    assert LoaderConfig().damaged == "raise"
    with pytest.raises(
        DamagedSampleError, match=r"00001-of-00002\.h5: sample 7 \(folder/17\.png\) is damaged"
    ):
        load(root, PLAIN, workers=workers, damaged="raise")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoded": b"no image"}, r"sample 5 \(folder/5\.png\) is not an image; pack"),
        ({"encoded": solid(0).encoded[:60]}, r"sample 5 \(folder/5\.png\) cannot be decoded: .*; pack"),
        ({"width": 25}, r"sample 5 \(folder/5\.png\) has 24 x 16 pixels, but its record says 25 x 16; pack"),
    ],
)
def test_what_was_never_an_image_of_its_size_is_damaged_too(
    write: Write, change: dict[str, Any], says: str
) -> None:
    root = write({5: change})
    with pytest.raises(DamagedSampleError, match=says):
        load(root, PLAIN, damaged="raise")
    found = load(root, PLAIN)
    assert_masked(found, found.samples.index(5))
    assert list(found.damaged) == [5]


def test_without_checksums_decoding_still_finds_some(write: Write) -> None:
    root = write()
    damage(root)
    assert set(load(root, PLAIN, verify=False).damaged) <= set(DAMAGED)


def test_a_shard_that_is_gone_is_not_skipped(write: Write) -> None:
    root = write()
    plan = BatchPlan(samples=COUNT, batch=BATCH, seed=1)
    config = LoaderConfig(image_size=SIZE, workers=0, damaged="skip")
    loader = TrainLoader(PackedSplit(root, "train"), plan, config, PLAIN, ASSIGN, rank=0, size=1, epochs=1)
    (root / "train-00001-of-00002.h5").unlink()
    with loader, pytest.raises(DataError, match=r"00001-of-00002\.h5 is missing"):
        list(loader)


def evaluate(root: Path, **settings: Any) -> None:
    config = LoaderConfig(workers=0, **settings)
    split = PackedSplit(root, "train")
    with EvaluationLoader(split, config, image_size=SIZE, batch=4, rank=0, size=1) as loader:
        assert sum(len(batch.samples) for batch in loader) == COUNT


def test_evaluation_never_skips(write: Write) -> None:
    root = write()
    evaluate(root)
    damage(root, (11,))
    with pytest.raises(DamagedSampleError, match=r"sample 1 \(folder/11\.png\) is damaged"):
        evaluate(root, damaged="skip")


def bomb(width: int, height: int) -> bytes:
    """A whole PNG by its header, with none of its pixels: decoding it would fail in another way."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize("use", [lambda root, **settings: load(root, PLAIN, **settings), evaluate])
def test_image_bombs_are_refused_from_their_header_under_either_policy(write: Write, use: Any) -> None:
    root = write({5: {"encoded": bomb(9_000, 8_000), "width": 9_000, "height": 8_000}})
    for policy in ("raise", "skip"):
        with pytest.raises(
            ImageTooLargeError,
            match=r"sample 5 \(folder/5\.png\) has 9000 x 8000 pixels, more than the limit of 64000000; "
            r"pack .* raise loader\.max_pixels",
        ):
            use(root, damaged=policy)


@pytest.mark.parametrize("use", [lambda root, **settings: load(root, PLAIN, **settings), evaluate])
def test_the_limit_is_a_setting(write: Write, use: Any) -> None:
    root = write()
    use(root, max_pixels=24 * 16)
    with pytest.raises(ImageTooLargeError, match="24 x 16 pixels, more than the limit of 383"):
        use(root, max_pixels=24 * 16 - 1)
