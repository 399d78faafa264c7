import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

from hvdyolo.data import block_writer
from hvdyolo.data import writer as writer_module
from hvdyolo.data.writer import Sample, ShardDescription, ShardWriter
from hvdyolo.utils.errors import StorageError, UsageError

Build = Callable[..., list[Sample]]


def write(path: Path, samples: list[Sample]) -> ShardWriter:
    description = ShardDescription("val", 3, ("cat", "dog", "emu"), {"quality": 95})
    with ShardWriter(path, description, path.parent) as writer:
        for sample in samples:
            writer.add(sample)
    return writer


def test_h5py_alone_finds_everything_where_the_specification_says(tmp_path: Path, samples: Build) -> None:
    written = samples(6)
    write(tmp_path / "a.h5", written)
    with h5py.File(tmp_path / "a.h5") as file:
        assert sorted(file) == [
            "data", "index", "label_flags", "label_ptr", "labels", "name_ptr", "names"
        ]  # fmt: skip
        assert {name: file.attrs[name] for name in file.attrs} == {
            "schema": b"hvdyolo.packed",
            "version": 2,
            "split": b"val",
            "shard": 3,
            "names": json.dumps(["cat", "dog", "emu"]).encode(),
            "settings": b'{"quality": 95}',
            "samples": 6,
            "complete": 1,
        }
        label_ptr, name_ptr = file["label_ptr"][()], file["name_ptr"][()]
        for number, sample in enumerate(written):
            row = file["index"][number]
            assert file["data"][row["offset"] : row["offset"] + row["length"]].tobytes() == sample.encoded
            assert row["checksum"] == xxhash.xxh3_64_intdigest(sample.encoded)
            assert (row["width"], row["height"], row["codec"]) == (24, 16, 1)
            assert (row["source_width"], row["source_height"]) == (240 + number, 160 + number)
            assert row["sample_id"] == 1000 + number
            boxes = slice(label_ptr[number], label_ptr[number + 1])
            np.testing.assert_array_equal(file["labels"][boxes], sample.labels)
            np.testing.assert_array_equal(file["label_flags"][boxes], sample.flags)
            name = file["names"][name_ptr[number] : name_ptr[number + 1]].tobytes()
            assert name.decode() == f"folder/ü{number}.png"


def test_nothing_in_a_shard_has_a_variable_length(tmp_path: Path, samples: Build) -> None:
    write(tmp_path / "a.h5", samples(3))
    with h5py.File(tmp_path / "a.h5") as file:
        assert not any(file[name].dtype.hasobject for name in file)
        assert not any(file.attrs.get_id(name).dtype.hasobject for name in file.attrs)


@pytest.mark.parametrize("count", [1, 40])
def test_data_is_one_aligned_piece_and_the_record_tells_where(
    tmp_path: Path, samples: Build, count: int
) -> None:
    record = write(tmp_path / "a.h5", samples(count)).record
    assert record is not None
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["data"]
        assert data.chunks is None
        assert data.id.get_offset() == record.data_offset
        assert data.id.get_create_plist().get_fill_time() == h5py.h5d.FILL_TIME_NEVER
        assert data.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
    assert record.data_offset % (1 << 20) == 0
    raw = (tmp_path / "a.h5").read_bytes()
    assert record.bytes == len(raw)
    images = b"".join(sample.encoded for sample in samples(count))
    assert raw[record.data_offset : record.data_offset + record.data_bytes] == images
    outside = raw[: record.data_offset] + raw[record.data_offset + record.data_bytes :]
    assert record.digest == xxhash.xxh3_128_hexdigest(outside)
    assert (record.samples, record.boxes) == (count, sum(number % 4 for number in range(count)))


def test_the_oldest_hdf5_that_can_read_it_is_1_10(tmp_path: Path, samples: Build) -> None:
    """Superblock version 3 came with 1.10; what 'latest' writes by HDF5 2.0 begins otherwise."""
    write(tmp_path / "a.h5", samples(1))
    raw = (tmp_path / "a.h5").read_bytes()
    assert raw[:8] == b"\x89HDF\r\n\x1a\n"
    assert raw[8] == 3


def test_the_same_samples_give_the_same_bytes_in_another_process(tmp_path: Path, samples: Build) -> None:
    write(tmp_path / "a.h5", samples(5))
    script = (
        "import sys, pickle, pathlib\n"
        "from hvdyolo.data.writer import *\n"
        "d = ShardDescription('val', 3, ('cat', 'dog', 'emu'), {'quality': 95})\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "with ShardWriter(p, d, p.parent) as w:\n"
        "    [w.add(s) for s in pickle.load(sys.stdin.buffer)]\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "b.h5"], input=pickle.dumps(samples(5)), check=True
    )
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("block", [10, 100, 1000, 5000])
def test_blocks_of_any_size_give_the_same_file(
    tmp_path: Path, samples: Build, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    write(tmp_path / "a.h5", samples(7))
    monkeypatch.setattr(block_writer, "_BLOCK_BYTES", block)
    monkeypatch.setattr(block_writer, "_MOST_PIECES", 3)
    write(tmp_path / "b.h5", samples(7))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_short_writes_are_continued(tmp_path: Path, samples: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.h5", samples(7))
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, at: pwritev(fd, [pieces[0][:333]], at))
    write(tmp_path / "b.h5", samples(7))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_failed_block_leaves_no_file(tmp_path: Path, samples: Build) -> None:
    def fail_in_the_block() -> None:
        with ShardWriter(tmp_path / "a.h5", ShardDescription("val", 0, ("x",), {}), tmp_path) as writer:
            writer.add(samples(1)[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_the_block()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_exit_74_and_leaves_no_file(
    tmp_path: Path, samples: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StorageError, match=r"a\.h5: No space left on device \(.* bytes free\)"):
        write(tmp_path / "a.h5", samples(1))
    assert list(tmp_path.iterdir()) == []


WRITE_WITH_LESS_AND_LESS_ROOM = """
import pathlib, pickle, resource, sys
from hvdyolo.data.writer import ShardDescription, ShardWriter
from hvdyolo.utils.errors import StorageError

out = pathlib.Path(sys.argv[1])
samples = pickle.load(sys.stdin.buffer)
description = ShardDescription("val", 3, ("cat", "dog", "emu"), {"quality": 95})
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with ShardWriter(out / "a.h5", description, out) as writer:
            for sample in samples:
                writer.add(sample)
        print(limit, "written")
    except StorageError as error:
        print(limit, error)
    assert not list(out.glob("*.tmp")), limit
"""


def test_a_file_that_cannot_grow_is_one_sentence_wherever_it_ends(tmp_path: Path, samples: Build) -> None:
    """By the limit of a file's size, which the system applies as it does a full disk or quota."""
    written = [replace(sample, encoded=sample.encoded * 100) for sample in samples(12)]
    record = write(tmp_path / "whole.h5", written).record
    assert record is not None
    end = record.data_offset + record.data_bytes
    assert record.data_offset < end < record.bytes
    tight = [0, 100, 5000, record.data_offset, end - 1, end, end + 1, record.bytes - 1]
    ended = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LESS_AND_LESS_ROOM, tmp_path, *map(str, [*tight, record.bytes])],
        input=pickle.dumps(written),
        capture_output=True,
        check=False,
    )
    assert ended.stderr == b""
    lines = ended.stdout.decode().splitlines()
    assert lines[-1] == f"{record.bytes} written"
    for limit, line in zip(tight, lines[:-1], strict=True):
        assert line.startswith(f"{limit} cannot write {tmp_path}/a.h5: File too large (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "whole.h5"]


def test_a_file_that_cannot_be_opened_again_is_not_left_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(writer_module, "BlockWriter", no_descriptor)
    with pytest.raises(StorageError, match="Too many open files"):
        write(tmp_path / "a.h5", [])
    assert list(tmp_path.iterdir()) == []


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    record = write(tmp_path / "a.h5", []).record
    assert record is not None
    assert (record.samples, record.data_bytes, record.data_offset) == (0, 0, 0)
    assert record.digest == xxhash.xxh3_128_hexdigest((tmp_path / "a.h5").read_bytes())


def test_names_that_no_attribute_holds_are_refused(tmp_path: Path, samples: Build) -> None:
    names = tuple(f"class {number:060d}" for number in range(1000))
    with (
        pytest.raises(UsageError, match="names take"),
        ShardWriter(tmp_path / "a.h5", ShardDescription("val", 0, names, {}), tmp_path) as writer,
    ):
        writer.add(samples(1)[0])
    assert list(tmp_path.iterdir()) == []
