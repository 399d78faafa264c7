"""Damaged and hostile shards: refused, whatever is wrong, before anything is believed."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest

from hvdyolo.data.format import INDEX_DTYPE
from hvdyolo.data.shard import _are_sound, read_shard
from hvdyolo.data.writer import ShardRecord, digest_outside
from hvdyolo.utils.errors import DataError

Packed = Any  # of conftest.py
Build = Callable[..., Packed]


def forge(data: Packed, change: Callable[[h5py.File], None]) -> ShardRecord:
    """Change a shard through HDF5, and the record with it, as an attacker who owns the dataset would."""
    path = data.root / data.records[0].file
    with h5py.File(path, "r+") as file:
        change(file)
    record = replace(data.records[0], bytes=path.stat().st_size)
    return replace(record, digest=digest_outside(path, record.data_offset, record.data_bytes))


def replace_dataset(name: str, value: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=value, **options)

    return change


def edit(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[h5py.File], None]:
    def edit_in_place(file: h5py.File) -> None:
        values = file[name][()]
        change(values)
        file[name][...] = values

    return edit_in_place


def test_a_good_shard_is_read_as_it_was_written(packed: Build) -> None:
    data = packed(each=6)
    shard = read_shard(data.root, data.records[0], classes=3)
    raw = shard.path.read_bytes()
    for row, sample in enumerate(data.samples):
        start, length = shard.starts.item(row), shard.lengths.item(row)
        assert raw[start : start + length] == sample.encoded
        boxes = slice(shard.label_ptr.item(row), shard.label_ptr.item(row + 1))
        np.testing.assert_array_equal(shard.labels[boxes], sample.labels)
        np.testing.assert_array_equal(shard.label_flags[boxes], sample.flags)
        assert shard.name(row) == sample.name
        assert shard.sizes[row].tolist() == [16, 24]
        assert shard.source_sizes[row].tolist() == [160 + row, 240 + row]
        assert shard.sample_ids.item(row) == 1000 + row


def test_arrays_cannot_be_changed(packed: Build) -> None:
    data = packed()
    shard = read_shard(data.root, data.records[0], classes=3)
    with pytest.raises(ValueError, match="read-only"):
        shard.labels[0, 0] = 1


@pytest.mark.parametrize("change", [-1, +1, -1000, 0])
def test_a_file_of_another_size_is_named_with_both(packed: Build, change: int) -> None:
    data = packed()
    record = data.records[0]
    os.truncate(data.root / record.file, record.bytes + change if change else 0)
    with pytest.raises(DataError, match=rf"{record.file} has \d+ bytes and should have {record.bytes}"):
        read_shard(data.root, record, classes=3)


def test_a_missing_file_is_named(packed: Build) -> None:
    data = packed()
    (data.root / data.records[0].file).unlink()
    with pytest.raises(DataError, match=r"train-00000-of-00001\.h5 is missing"):
        read_shard(data.root, data.records[0], classes=3)


def test_a_file_that_is_no_hdf5_at_all_is_refused_with_the_digest_right(packed: Build) -> None:
    data = packed()
    path = data.root / data.records[0].file
    path.write_bytes(os.urandom(data.records[0].bytes))
    record = data.records[0]
    record = replace(record, digest=digest_outside(path, record.data_offset, record.data_bytes))
    with pytest.raises(DataError, match="is not a shard"):
        read_shard(data.root, record, classes=3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.create_dataset("extra", data=1), "holds .*'extra'"),
        (lambda file: file.__delitem__("names"), "should hold"),
        (replace_dataset("labels", np.zeros((7, 4), "<f4")), "shape"),
        (replace_dataset("labels", np.zeros((7, 5), ">f4")), "another type"),
        (replace_dataset("label_flags", np.zeros(9, "u1")), "shape"),
        (replace_dataset("names", np.zeros((3, 3), "u1")), "shape"),
        (replace_dataset("index", np.zeros(5, INDEX_DTYPE)), "divide /data"),
        (lambda file: file.attrs.__delitem__("complete"), "attributes"),
        (lambda file: file.attrs.modify("complete", np.int64(0)), "complete is 0"),
        (lambda file: file.attrs.modify("version", np.int64(1)), "version is 1"),
        (lambda file: file.attrs.modify("samples", np.int64(4)), "samples is 4"),
        (lambda file: file.attrs.create("split", "text of variable length"), "attribute split"),
        (lambda file: file.attrs.create("shard", [1, 2]), "attribute shard"),
        (lambda file: file.attrs.create("more", 1), "attributes"),
        (edit("index", lambda rows: rows["offset"].__setitem__(1, 0)), "divide /data"),
        (edit("index", lambda rows: rows["length"].__setitem__(4, 1)), "divide /data"),
        (edit("index", lambda rows: rows["width"].__setitem__(2, 0)), "width is 0"),
        (edit("label_ptr", lambda rows: rows.__setitem__(2, 6)), "label_ptr does not rise"),
        (edit("label_ptr", lambda rows: rows.__setitem__(0, 1)), "label_ptr does not rise"),
        (edit("label_ptr", lambda rows: rows.__setitem__(2, 2**64 - 1)), "label_ptr does not rise"),
        (edit("name_ptr", lambda rows: rows.__setitem__(5, 1000)), "name_ptr does not rise"),
        (edit("labels", lambda rows: rows.__setitem__((3, 0), 3)), r"sample 3 .* label out of range"),
        (edit("labels", lambda rows: rows.__setitem__((0, 0), -1)), r"sample 1 .* label out of range"),
        (edit("labels", lambda rows: rows.__setitem__((0, 0), 0.5)), "label out of range"),
        (edit("labels", lambda rows: rows.__setitem__((1, 2), np.nan)), r"sample 2 .* out of range"),
        (edit("labels", lambda rows: rows.__setitem__((1, 4), np.inf)), "label out of range"),
        (edit("labels", lambda rows: rows.__setitem__((1, 4), 1.001)), "label out of range"),
        (edit("labels", lambda rows: rows.__setitem__((1, 1), -0.001)), "label out of range"),
    ],
)
def test_what_contradicts_the_specification_is_refused(packed: Build, change: Any, says: str) -> None:
    data = packed(each=5)
    with pytest.raises(DataError, match=says):
        read_shard(data.root, forge(data, change), classes=3)


def test_data_elsewhere_than_the_manifest_says_is_refused(packed: Build) -> None:
    data = packed()
    path = data.root / data.records[0].file
    record = replace(data.records[0], data_offset=data.records[0].data_offset - 8)
    record = replace(record, digest=digest_outside(path, record.data_offset, record.data_bytes))
    with pytest.raises(DataError, match="not where the manifest says"):
        read_shard(data.root, record, classes=3)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 200])
def test_one_label_that_cannot_be_is_found_wherever_it_is(count: int) -> None:
    """Many rows are looked at together, and those that are left over, by themselves."""
    random = np.random.default_rng(count)
    labels = np.hstack([random.integers(0, 3, (count, 1)), random.random((count, 4))]).astype(np.float32)
    assert _are_sound(labels, 3)
    for row in range(count):
        for column, value in ((0, 3), (0, -1), (0, 0.5), (1, -0.01), (2, 1.01), (4, np.nan), (3, -np.inf)):
            changed = labels.copy()
            changed[row, column] = value
            assert not _are_sound(changed, 3), (row, column, value)
