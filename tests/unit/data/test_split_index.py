"""An index says what the shards say, read as it is specified; what it cannot say is refused."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from hvdyolo.data import node_memory
from hvdyolo.data.format import COLUMNS, DATASETS, shard_name
from hvdyolo.data.manifest import build_manifest, write_manifest
from hvdyolo.data.read_back import read_back
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.shard import Shard, read_shard
from hvdyolo.data.split_index import SplitIndex, block_of
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter
from hvdyolo.utils.errors import DataError, StorageError

Build = Callable[..., Any]
NAMES = ("cat", "dog", "emu")


def read(index: SplitIndex) -> bytes:
    """All blocks; what fills them up is zero."""
    whole = bytearray(index.size)

    def write(piece: memoryview, place: int) -> None:
        whole[place : place + len(piece)] = piece

    index.copy_to(write)
    return bytes(whole)


def read_as_specified(root: Path) -> list[dict[str, Any]]:
    """Written from docs/shard_format.md alone."""
    samples: list[dict[str, Any]] = []
    for shard in json.loads((root / "manifest.json").read_bytes())["splits"]["train"]["shards"]:
        raw = (root / shard["file"]).read_bytes()
        n, m, columns = shard["samples"], shard["boxes"], shard["columns"]

        def column(name: str, form: str, columns: Any = columns, raw: bytes = raw) -> list[Any]:
            return list(struct.unpack_from(form, raw, columns[name]))

        label_ptr, name_ptr = column("label_ptr", f"<{n + 1}Q"), column("name_ptr", f"<{n + 1}Q")
        numbers, flags = column("labels", f"<{5 * m}f"), column("label_flags", f"<{m}B")
        labels = [tuple(numbers[place : place + 5]) for place in range(0, 5 * m, 5)]
        rows = struct.iter_unpack("<QIQHHHHQB", raw[columns["index"] :][: 37 * n])
        names = raw[columns["names"] :][: columns["name_bytes"]]
        sizes = {
            "label_ptr": 8 * (n + 1),
            "name_ptr": 8 * (n + 1),
            "labels": 20 * m,
            "index": 37 * n,
            "label_flags": m,
            "names": columns["name_bytes"],
        }
        joined = b"".join(raw[columns[name] :][:size] for name, size in sizes.items())
        assert columns["digest"] == xxh3_128_hexdigest(joined)
        for i, row in enumerate(rows):
            samples.append(
                {
                    "row": row,
                    "labels": labels[label_ptr[i] : label_ptr[i + 1]],
                    "flags": flags[label_ptr[i] : label_ptr[i + 1]],
                    "name": names[name_ptr[i] : name_ptr[i + 1]].decode(),
                    "image": raw[shard["data_offset"] + row[0] :][: row[1]],
                }
            )
    return samples


def test_it_is_what_the_specification_says(packed: Build) -> None:
    data = packed(shards=3, each=5)
    read = read_as_specified(data.root)
    assert len(read) == len(data.samples)
    for sample, said in zip(data.samples, read, strict=True):
        assert said["name"] == sample.name
        assert said["labels"] == [tuple(label) for label in sample.labels.tolist()]
        assert said["flags"] == sample.flags.tolist()
        sizes = sample.width, sample.height, sample.source_width, sample.source_height
        assert said["image"] == sample.encoded
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
    """Of any samples, against what h5py reads from the shards."""
    root = tmp_path_factory.mktemp("packed")
    records = []
    for number, samples in enumerate(shards):
        path = root / shard_name("train", number, len(shards))
        with ShardWriter(path, ShardDescription("train", number, NAMES, {}), root) as writer:
            for sample in samples:
                writer.add(sample)
        assert writer.record is not None
        records.append(writer.record)
    write_manifest(
        build_manifest(read_back(root, NAMES, {"train": records}), NAMES, {"train": records}, {}), root
    )
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


def test_hdf5_is_not_used(packed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed(shards=2, each=4)
    monkeypatch.setattr(h5py, "File", None)
    split = PackedSplit(data.root, "train")
    assert [split.read(index) for index in range(8)] == [sample.encoded for sample in data.samples]
    assert [split.name(index) for index in range(8)] == [sample.name for sample in data.samples]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("shards", [1, 3, 40])  # fewer and more than are read at once
def test_blocks_come_in_the_order_of_shards(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr(node_memory, "_SHARED_FROM", 1)
        monkeypatch.setattr(node_memory, "_places", lambda: (tmp_path,))
    data = packed(shards=shards, each=2)
    index = SplitIndex(data.root, data.records, len(NAMES))
    whole = read(index)
    assert len(whole) == index.size
    assert index.matches(whole)
    split = PackedSplit(data.root, "train")
    assert (split._index.copy is not None) == mapped
    assert split._index.data[:] == whole
    assert [split.name(number) for number in range(2 * shards)] == [sample.name for sample in data.samples]


def test_every_byte_of_a_copy_counts_but_what_fills_up_blocks(packed: Build) -> None:
    data = packed(shards=2, each=3)
    index = SplitIndex(data.root, data.records, len(NAMES))
    whole = read(index)
    fills = set()
    for block in index.blocks:
        end = block.names + block.shard.columns.name_bytes
        fills.update(range(end, end + -end % 8))
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        assert index.matches(bytes(changed)) == (place in fills), place


@pytest.mark.parametrize("column", COLUMNS)
def test_damage_to_a_column_is_found_at_the_start_and_its_shard_named(packed: Build, column: str) -> None:
    data = packed(shards=3, each=4)
    record = data.records[1]
    path = data.root / record.file
    good = path.read_bytes()
    start, size = getattr(record.columns, column), record.column_sizes()[column]
    for place in (start, start + size // 2, start + size - 1):
        raw = bytearray(good)
        raw[place] ^= 1
        path.write_bytes(raw)
        with pytest.raises(DataError, match=rf"{record.file} is damaged"):
            PackedSplit(data.root, "train")


@pytest.mark.parametrize("what", ["missing", "cut", "longer"])
def test_a_shard_that_is_not_there_whole_is_told_at_the_start(packed: Build, what: str) -> None:
    data = packed(shards=3, each=4)
    path = data.root / data.records[1].file
    raw = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[:-1] if what == "cut" else raw + b"\0")
    with pytest.raises(DataError, match=rf"{path.name} (is missing|has \d+ bytes and should have)"):
        PackedSplit(data.root, "train")


def test_a_shard_that_cannot_be_read_is_exit_74(packed: Build) -> None:
    data = packed(shards=2, each=4)
    path = data.root / data.records[1].file
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StorageError, match=rf"cannot read .*{path.name}"):
        PackedSplit(data.root, "train")


def rewrite(data: Any, column: str, values: Any) -> None:
    """Change a column of the only shard, and a manifest whose digests fit."""
    record = data.records[0]
    path = data.root / record.file
    raw = bytearray(path.read_bytes())
    start, size = getattr(record.columns, column), record.column_sizes()[column]
    raw[start : start + size] = values.tobytes()
    path.write_bytes(raw)
    sizes = record.column_sizes()
    joined = b"".join(bytes(raw[getattr(record.columns, name) :][: sizes[name]]) for name in COLUMNS)
    columns = replace(record.columns, digest=xxh3_128_hexdigest(joined))
    shards = {"train": [replace(record, columns=columns)]}
    write_manifest(build_manifest("0" * 32, NAMES, shards, {}), data.root)


@pytest.mark.parametrize(
    ("column", "place", "value", "says"),
    [
        ("labels", (2, 0), 3, "sample 2 .* label out of range"),
        ("labels", (2, 0), 0.5, "label out of range"),
        ("labels", (5, 4), float("nan"), "label out of range"),
        ("labels", (0, 1), -1, "label out of range"),
        ("label_ptr", 1, 99, "label_ptr does not rise"),
        ("name_ptr", 1, 1 << 63, "name_ptr does not rise"),
        ("name_ptr", 5, 1 << 62, "name_ptr does not rise"),
        ("name_ptr", 5, 8, "name_ptr does not rise"),
        ("length", 1, (1 << 32) - 1, "does not divide /data"),
        ("offset", 2, 1 << 40, "does not divide /data"),
        ("height", 1, 0, "height is 0"),
    ],
)
def test_columns_that_were_made_to_mislead_are_refused(
    packed: Build, column: str, place: Any, value: float, says: str
) -> None:
    data = packed(each=5)
    with h5py.File(data.root / data.records[0].file) as file:
        values = file[column if column in DATASETS else "index"][()]
    name = column if column in DATASETS else "index"
    rewrite(data, name, values)
    PackedSplit(data.root, "train")
    (values if name == column else values[column])[place] = value
    rewrite(data, name, values)
    with pytest.raises(DataError, match=says):
        PackedSplit(data.root, "train")


@pytest.mark.parametrize("counts", [{"samples": 4}, {"samples": 6}, {"boxes": 0}, {"boxes": 7}])
def test_counts_that_the_shard_does_not_have_are_refused(packed: Build, counts: dict[str, int]) -> None:
    data = packed(each=5)
    record: ShardRecord = replace(data.records[0], **counts)
    write_manifest(build_manifest("0" * 32, NAMES, {"train": [record]}, {}), data.root)
    with pytest.raises(DataError, match="is damaged"):
        PackedSplit(data.root, "train")


def test_whatever_the_bytes_are_nothing_worse_than_a_refusal_comes(packed: Build) -> None:
    """Of a shard whose digests fit whatever is in it."""
    data = packed(each=3)
    record = data.records[0]
    good = {
        name: np.frombuffer((data.root / record.file).read_bytes(), "u1", size, getattr(record.columns, name))
        for name, size in record.column_sizes().items()
    }
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        column = random.choice(COLUMNS)
        changed = good[column].copy()
        for _ in range(random.integers(1, 4)):
            changed[random.integers(len(changed))] = random.integers(256)
        rewrite(data, column, changed)
        try:
            PackedSplit(data.root, "train")
        except DataError:
            refused += 1
        rewrite(data, column, good[column])
    assert 100 < refused < 300


def test_a_block_is_the_columns_end_to_end(packed: Build) -> None:
    data = packed(shards=2, each=5)
    whole = read(SplitIndex(data.root, data.records, len(NAMES)))
    place = 0
    for record in data.records:
        block = block_of(read_shard(data.root, record, len(NAMES)))
        assert whole[place : place + len(block)] == block
        assert xxh3_128_hexdigest(block) == record.columns.digest
        place += len(block) + -len(block) % 8
    assert place == len(whole)
