"""Shards made to make a reader read foreign files, or run out of memory, with digests that fit.

Whoever can write a dataset can write its manifest too, so nothing here is stopped by a digest. That no byte
of a foreign file is read is what the kernel says of it.
"""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hvdyolo.data.format import DATASETS
from hvdyolo.data.manifest import build_manifest, write_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.shard import read_shard
from hvdyolo.data.verify import verify_packed
from hvdyolo.data.writer import digest_outside
from hvdyolo.utils.errors import DataError

Packed = Any  # of conftest.py
Attack = Callable[[h5py.File, str, Path], None]
"""Changes a dataset of a shard; the folder has the shard as it was, and files made from it."""

SHARD, NESTED, RAW = "shard.h5", "nested.h5", "raw"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder that no reader of the dataset has any business in."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    return folder


class Opened:
    """How often files of a folder were opened or read, by whomever."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def count(self) -> int:
        """Events since the last call."""
        try:
            return len(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return 0


@contextmanager
def watched(folder: Path) -> Iterator[Opened]:
    """Linux's inotify: it sees what happens in libraries, and to root."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    try:
        access, opened = 0x1, 0x20
        assert libc.inotify_add_watch(descriptor, bytes(folder), access | opened) >= 0
        yield Opened(descriptor)
    finally:
        os.close(descriptor)


def external_link(file: h5py.File, name: str, foreign: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(foreign / SHARD), f"/{name}")


def external_link_through_another(file: h5py.File, name: str, foreign: Path) -> None:
    with h5py.File(foreign / NESTED, "w") as nested:
        nested["gate"] = h5py.ExternalLink(str(foreign / SHARD), "/")
    del file[name]
    file[name] = h5py.ExternalLink(str(foreign / NESTED), f"/gate/{name}")


def soft_link_through_external_link(file: h5py.File, name: str, foreign: Path) -> None:
    """With no name in the root group but the seven: the gate is one of them."""
    gate = next(other for other in DATASETS if other != name)
    del file[name], file[gate]
    file[gate] = h5py.ExternalLink(str(foreign / SHARD), "/")
    file[name] = h5py.SoftLink(f"/{gate}/{name}")


def external_link_in_a_group(file: h5py.File, name: str, foreign: Path) -> None:
    del file[name]
    file.create_group(name)[name] = h5py.ExternalLink(str(foreign / SHARD), f"/{name}")


def external_storage(file: h5py.File, name: str, foreign: Path) -> None:
    shape, dtype, values = file[name].shape, file[name].dtype, file[name][()]
    (foreign / RAW).write_bytes(values.tobytes())
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(foreign / RAW), 0, values.nbytes)])


def external_storage_in_a_group(file: h5py.File, name: str, foreign: Path) -> None:
    external_storage(file, name, foreign)
    file.move(name, "moved")
    file.create_group(name)
    file.move("moved", f"{name}/{name}")


def virtual_dataset(file: h5py.File, name: str, foreign: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(foreign / SHARD, name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def virtual_dataset_of_a_virtual_one(file: h5py.File, name: str, foreign: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    with h5py.File(foreign / NESTED, "w") as nested:
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(foreign / SHARD, name, shape)
        nested.create_virtual_dataset(name, layout)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(foreign / NESTED, name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def soft_link(file: h5py.File, name: str, foreign: Path) -> None:
    other = next(other for other in DATASETS if other != name)
    del file[name]
    file[name] = h5py.SoftLink(f"/{other}")


def soft_link_through_soft_link(file: h5py.File, name: str, foreign: Path) -> None:
    gate = next(other for other in DATASETS if other != name)
    del file[name], file[gate]
    file[gate] = h5py.SoftLink("/")
    file[name] = h5py.SoftLink(f"/{gate}/{next(other for other in DATASETS if other not in (name, gate))}")


def soft_link_to_itself(file: h5py.File, name: str, foreign: Path) -> None:
    del file[name]
    file[name] = h5py.SoftLink(f"/{name}")


def root_group(file: h5py.File, name: str, foreign: Path) -> None:
    del file[name]
    file[name] = file["/"]


def named_type(file: h5py.File, name: str, foreign: Path) -> None:
    dtype = file[name].dtype
    del file[name]
    file[name] = dtype


def create_unallocated(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    """A dataset of a shard, contiguous, of a size that nobody has paid for."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    dtype = h5py.h5t.py_create(DATASETS[name])
    h5py.h5d.create(file.id, name.encode(), dtype, h5py.h5s.create_simple(shape), properties)


def huge_shape(file: h5py.File, name: str, foreign: Path) -> None:
    shape = (1 << 40, *file[name].shape[1:])
    del file[name]
    create_unallocated(file, name, shape)


def no_shape(file: h5py.File, name: str, foreign: Path) -> None:
    dtype = file[name].dtype
    del file[name]
    file.create_dataset(name, data=h5py.Empty(dtype))


def compression_bomb(file: h5py.File, name: str, foreign: Path) -> None:
    rows = (1 << 40, *file[name].shape[1:])
    dtype = file[name].dtype
    del file[name]
    # A terabyte and more that reads as zeros, of which no chunk is stored.
    file.create_dataset(name, rows, dtype, chunks=(1 << 16, *rows[1:]), compression="gzip")


def filtered(number: int) -> Attack:
    def attack(file: h5py.File, name: str, foreign: Path) -> None:
        values, dtype = file[name][()], file[name].id.get_type().copy()
        del file[name]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(values.shape)
        properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(values.shape)
        h5py.h5d.create(file.id, name.encode(), dtype, space, properties)

    return attack


ELSEWHERE = "is a link to somewhere else"
NO_DATASET = "is not a dataset"
NOT_PLAIN = "is not stored in one plain piece"

READING_FOREIGN_FILES: dict[str, tuple[Attack, str]] = {
    "external link": (external_link, ELSEWHERE),
    "external link through another": (external_link_through_another, ELSEWHERE),
    "soft link through external link": (soft_link_through_external_link, ELSEWHERE),
    "external link in a group": (external_link_in_a_group, NO_DATASET),
    "external storage": (external_storage, NOT_PLAIN),
    "external storage in a group": (external_storage_in_a_group, NO_DATASET),
    "virtual dataset": (virtual_dataset, NOT_PLAIN),
    "virtual dataset of a virtual one": (virtual_dataset_of_a_virtual_one, NOT_PLAIN),
}
OTHERS: dict[str, tuple[Attack, str]] = {
    "soft link": (soft_link, ELSEWHERE),
    "soft link through soft link": (soft_link_through_soft_link, ELSEWHERE),
    "soft link to itself": (soft_link_to_itself, ELSEWHERE),
    "root group": (root_group, NO_DATASET),
    "named type": (named_type, NO_DATASET),
    "2^40 rows": (huge_shape, "shape|lies outside the file"),
    "no shape": (no_shape, f"{NOT_PLAIN}|shape"),
    "compression bomb": (compression_bomb, NOT_PLAIN),
    "unknown filter": (filtered(32_999), NOT_PLAIN),
    "known filter": (filtered(h5py.h5z.FILTER_FLETCHER32), NOT_PLAIN),
}


def forge(data: Packed, attack: Attack, name: str, foreign: Path) -> None:
    """Change the only shard through HDF5, and write a manifest whose digests fit what it has become."""
    path = data.root / data.records[0].file
    shutil.copy(path, foreign / SHARD)
    with h5py.File(path, "r+") as file:
        attack(file, name, foreign)
    # HDF5 shortens a file whose last dataset goes, but images have to fit into what the manifest says.
    os.truncate(path, max(path.stat().st_size, data.records[0].bytes))
    record = replace(data.records[0], bytes=path.stat().st_size)
    record = replace(record, digest=digest_outside(path, record.data_offset, record.data_bytes))
    write_manifest(build_manifest("0" * 32, ("cat", "dog", "emu"), {"train": [record]}, {}), data.root)


def columns_of(data: Packed) -> bytes:
    """The bytes where the only shard's columns are."""
    (record,) = data.records
    raw = (data.root / record.file).read_bytes()
    sizes = record.column_sizes().items()
    return b"".join(raw[getattr(record.columns, name) :][:size] for name, size in sizes)


def check_training_of(data: Packed, before: bytes) -> None:
    """Training reads columns by place: they are as they were ``before``, and right, or it refuses them."""
    if columns_of(data) != before:
        with pytest.raises(DataError, match=rf"{data.records[0].file} is damaged"):
            PackedSplit(data.root, "train")
        return
    split = PackedSplit(data.root, "train")
    for number, sample in enumerate(data.samples):
        np.testing.assert_array_equal(split.labels(number), sample.labels)
        np.testing.assert_array_equal(split.flags(number), sample.flags)
        assert split.name(number) == sample.name
        assert split.size(number) == (sample.height, sample.width)


def read_naively(path: Path, name: str) -> bytes:
    with h5py.File(path, "r") as file:
        found = file[name]
        return bytes(found[name][()] if isinstance(found, h5py.Group) else found[()])


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("attack", READING_FOREIGN_FILES)
def test_no_byte_of_a_foreign_file_is_read(packed: Any, foreign: Path, attack: str, name: str) -> None:
    data = packed()
    path = data.root / data.records[0].file
    change, says = READING_FOREIGN_FILES[attack]
    honest = read_naively(path, name)
    before = columns_of(data)
    forge(data, change, name, foreign)
    with watched(foreign) as opened:
        # Another dataset may be reached first: a gate is one.
        with pytest.raises(DataError, match=rf"/(\w+) {says}"):
            verify_packed(data.root)
        check_training_of(data, before)
        assert opened.count() == 0
        # The attack works, and the watch would have seen it.
        assert read_naively(path, name) == honest
        assert opened.count() > 0


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("attack", OTHERS)
def test_whatever_else_is_no_plain_dataset_is_refused(
    packed: Any, foreign: Path, attack: str, name: str
) -> None:
    data = packed()
    change, says = OTHERS[attack]
    before = columns_of(data)
    forge(data, change, name, foreign)
    with pytest.raises(DataError, match=says):
        verify_packed(data.root)
    check_training_of(data, before)


@pytest.mark.parametrize("rows", [1 << 40, 1 << 59])
def test_a_huge_shape_that_the_manifest_confirms_is_refused(packed: Any, rows: int) -> None:
    """2^59 rows of 20 bytes are the most that HDF5 stores, and more than a signed 64-bit number holds."""
    data = packed()
    path = data.root / data.records[0].file
    with h5py.File(path, "r+") as file:
        for name, shape in (("labels", (rows, 5)), ("label_flags", (rows,))):
            del file[name]
            create_unallocated(file, name, shape)
    record = replace(data.records[0], bytes=path.stat().st_size, boxes=rows)
    record = replace(record, digest=digest_outside(path, record.data_offset, record.data_bytes))
    with pytest.raises(DataError, match=r"/labels of \d+ bytes lies outside the file"):
        read_shard(data.root, record, classes=3)
