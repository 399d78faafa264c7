"""The index file says what the shards say, as it is specified; what it cannot say is refused."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from hvdyolo.data.format import index_name, shard_name
from hvdyolo.data.index_file import IndexRecord, IndexWriter, block_of, check_index, find_blocks
from hvdyolo.data.manifest import build_manifest, read_manifest, write_manifest
from hvdyolo.data.read_back import read_back
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.shard import Shard, read_shard
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter
from hvdyolo.utils.errors import DataError, StorageError

Build = Callable[..., Any]
NAMES = ("cat", "dog", "emu")


def read_as_specified(raw: bytes, shards: list[ShardRecord]) -> list[dict[str, Any]]:
    """Written from docs/shard_format.md alone."""
    samples: list[dict[str, Any]] = []
    place = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from(form, raw, place)
        place += struct.calcsize(form)
        return values

    for shard in shards:
        assert place % 8 == 0
        label_ptr = take(f"<{shard.samples + 1}Q")
        name_ptr = take(f"<{shard.samples + 1}Q")
        labels = [take("<5f") for _ in range(shard.boxes)]
        rows = [take("<QIQHHHHQB") for _ in range(shard.samples)]
        flags = take(f"<{shard.boxes}B")
        (names,) = take(f"<{name_ptr[-1]}s")
        padding = take(f"<{-place % 8}B")
        assert not any(padding)
        for i, row in enumerate(rows):
            samples.append(
                {
                    "row": row,
                    "labels": labels[label_ptr[i] : label_ptr[i + 1]],
                    "flags": flags[label_ptr[i] : label_ptr[i + 1]],
                    "name": names[name_ptr[i] : name_ptr[i + 1]].decode(),
                }
            )
    assert place == len(raw)
    return samples


def test_it_is_what_the_specification_says(packed: Build) -> None:
    data = packed(shards=3, each=5)
    raw = (data.root / "train.index").read_bytes()
    record = read_manifest(data.root).splits["train"].index
    assert record == IndexRecord("train.index", len(raw), xxh3_128_hexdigest(raw))
    read = read_as_specified(raw, data.records)
    assert len(read) == len(data.samples)
    for sample, said in zip(data.samples, read, strict=True):
        assert said["name"] == sample.name
        assert said["labels"] == [tuple(label) for label in sample.labels.tolist()]
        assert said["flags"] == tuple(sample.flags.tolist())
        sizes = sample.width, sample.height, sample.source_width, sample.source_height
        assert said["row"][1] == len(sample.encoded)
        assert said["row"][3:] == (*sizes, sample.sample_id, 1)


@st.composite
def any_sample(draw: st.DrawFn) -> Sample:
    boxes = draw(st.integers(0, 3))
    fractions = st.floats(0, 1, width=32)
    labels = [[float(draw(st.integers(0, 2))), *(draw(fractions) for _ in range(4))] for _ in range(boxes)]
    side = st.integers(1, (1 << 16) - 1)
    return Sample(
        encoded=draw(st.binary(min_size=1, max_size=20)),
        format=draw(st.sampled_from(["JPEG", "PNG", "XBM"])),
        width=draw(side),
        height=draw(side),
        source_width=draw(side),
        source_height=draw(side),
        labels=np.array(labels, dtype=np.float32).reshape(-1, 5),
        flags=np.array([draw(st.integers(0, 7)) for _ in range(boxes)], dtype=np.uint8),
        name=draw(st.text(st.characters(codec="utf-8"), max_size=5)),
        sample_id=draw(st.integers(0, (1 << 63) - 1)),
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(any_sample(), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_reader_is_told_what_the_shards_say(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[Sample]]
) -> None:
    """Of any samples, with and without an index file, against what h5py reads from the shards."""
    root = tmp_path_factory.mktemp("packed")
    records = []
    for number, samples in enumerate(shards):
        path = root / shard_name("train", number, len(shards))
        with ShardWriter(path, ShardDescription("train", number, NAMES, {}), root) as writer:
            for sample in samples:
                writer.add(sample)
        assert writer.record is not None
        records.append(writer.record)
    indexes = read_back(root, root, NAMES, {"train": records}).indexes
    for told in (indexes, {}):
        write_manifest(build_manifest("0" * 32, NAMES, {"train": records}, {}, told), root)
        split = PackedSplit(root, "train")
        index = 0
        for record, samples in zip(records, shards, strict=True):
            shard = read_shard(root, record, len(NAMES))
            for row, sample in enumerate(samples):
                check_sample(split, index, shard, row)
                assert split.read(index) == sample.encoded
                assert split.shard_file(index) == record.file
                index += 1
        assert index == len(split)


def check_sample(split: PackedSplit, index: int, shard: Shard, row: int) -> None:
    """All that is told about a sample, values and types."""
    boxes = slice(shard.label_ptr[row], shard.label_ptr[row + 1])
    labels, flags = split.labels(index), split.flags(index)
    assert (labels.dtype, labels.shape) == (np.float32, shard.labels[boxes].shape)
    assert (flags.dtype, flags.shape) == (np.uint8, shard.label_flags[boxes].shape)
    np.testing.assert_array_equal(labels, shard.labels[boxes])
    np.testing.assert_array_equal(flags, shard.label_flags[boxes])
    assert split.size(index) == tuple(shard.sizes[row].tolist())
    assert split.source_size(index) == tuple(shard.source_sizes[row].tolist())
    assert split.sample_id(index) == shard.sample_ids.item(row)
    assert split.name(index) == shard.name(row)
    assert split.describe(index) == shard.describe(row)


def test_no_shard_is_opened_where_there_is_an_index(packed: Build) -> None:
    data = packed(shards=2, each=4)
    for record in data.records:  # nothing is left in the shards but the images
        raw = bytearray((data.root / record.file).read_bytes())
        raw[: record.data_offset] = bytes(record.data_offset)
        (data.root / record.file).write_bytes(raw)
    split = PackedSplit(data.root, "train")
    assert [split.read(index) for index in range(8)] == [sample.encoded for sample in data.samples]
    assert [split.name(index) for index in range(8)] == [sample.name for sample in data.samples]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), r"has \d+ bytes and should have"),
        (lambda path: path.write_bytes(path.read_bytes() + bytes(8)), r"has \d+ bytes and should have"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "is damaged"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_index_is_refused(packed: Build, damage: Callable[[Path], None], says: str) -> None:
    data = packed()
    damage(data.root / "train.index")
    with pytest.raises(DataError, match=rf"train\.index {says}"):
        PackedSplit(data.root, "train")


def test_an_index_that_cannot_be_read_is_exit_74(packed: Build) -> None:
    path = packed().root / "train.index"
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*train\.index"):
        PackedSplit(path.parent, "train")


@pytest.mark.parametrize("what", ["missing", "cut"])
def test_a_shard_that_is_not_there_whole_is_told_at_the_start(packed: Build, what: str) -> None:
    data = packed(shards=3, each=4)
    path = data.root / data.records[1].file
    path.unlink() if what == "missing" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} (is missing|has \d+ bytes and should have)"):
        PackedSplit(data.root, "train")


def forge(root: Path, index: bytes, **changes: Any) -> None:
    """Give a dataset another index, and a manifest whose digest fits it."""
    manifest = read_manifest(root)
    (root / "train.index").write_bytes(index)
    record = IndexRecord("train.index", len(index), xxh3_128_hexdigest(index))
    shards = [replace(shard, **changes) for shard in manifest.splits["train"].shards]
    write_manifest(build_manifest("0" * 32, manifest.names, {"train": shards}, {}, {"train": record}), root)


def changed(shard: Shard, column: str, place: Any, value: float) -> bytes:
    values = np.array(getattr(shard, column))
    values[place] = value
    return block_of(replace(shard, **{column: values}))


@pytest.mark.parametrize(
    ("column", "place", "value", "says"),
    [
        ("labels", (2, 0), 3, "sample 2 .* label out of range"),
        ("labels", (2, 0), 0.5, "label out of range"),
        ("labels", (5, 4), float("nan"), "label out of range"),
        ("labels", (0, 1), -1, "label out of range"),
        ("label_ptr", 1, 99, "label_ptr does not rise"),
        ("name_ptr", 1, -1, "name_ptr does not rise"),
        ("name_ptr", 5, 1 << 62, "does not fit the manifest"),
        ("name_ptr", 5, 8, "does not fit the manifest"),
        ("lengths", 1, (1 << 32) - 1, "does not divide /data"),
        ("starts", 2, 1 << 40, "does not divide /data"),
        ("sizes", (1, 0), 0, "height is 0"),
    ],
)
def test_an_index_that_was_made_to_mislead_is_refused(
    packed: Build, column: str, place: Any, value: float, says: str
) -> None:
    data = packed(each=5)
    shard = read_shard(data.root, data.records[0], len(NAMES))
    forge(data.root, block_of(shard))
    PackedSplit(data.root, "train")
    forge(data.root, changed(shard, column, place, value))
    with pytest.raises(DataError, match=says):
        PackedSplit(data.root, "train")


@pytest.mark.parametrize("counts", [{"samples": 1 << 50}, {"boxes": 1 << 50}, {"boxes": 0}, {"samples": 4}])
def test_counts_that_the_index_does_not_have_are_refused(packed: Build, counts: dict[str, int]) -> None:
    root = packed(each=5).root
    forge(root, (root / "train.index").read_bytes(), **counts)
    with pytest.raises(DataError):
        PackedSplit(root, "train")


def test_whatever_the_bytes_are_nothing_worse_than_a_refusal_comes(packed: Build) -> None:
    data = packed(shards=2, each=3)
    good = (data.root / "train.index").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(random.integers(1, 4)):
            raw[random.integers(len(raw))] = random.integers(256)
        try:
            check_index(bytes(raw), data.records, len(NAMES), Path("index"))
        except DataError:
            continue
        blocks = find_blocks(bytes(raw), data.records, Path("index"))
        assert blocks == find_blocks(good, data.records, Path("index"))


def test_a_file_is_there_when_it_is_whole(packed: Build, tmp_path: Path) -> None:
    data = packed()
    shard = read_shard(data.root, data.records[0], len(NAMES))
    path = tmp_path / index_name("val")

    def fail() -> None:
        with IndexWriter(path, tmp_path) as index:
            index.add(shard)
            assert not path.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not path.exists()
    with IndexWriter(path, tmp_path) as index:
        index.add(shard)
        index.add(shard)
    assert path.read_bytes() == 2 * block_of(shard)
    assert index.record == IndexRecord(
        path.name, path.stat().st_size, xxh3_128_hexdigest(2 * block_of(shard))
    )


def test_an_index_that_cannot_be_written_is_exit_74(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write .*train\.index"),
        IndexWriter(tmp_path / "train.index", tmp_path / "none"),
    ):
        pass
