"""Writing one shard."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from hvdyolo.data.block_writer import BlockWriter
from hvdyolo.data.format import (
    CODECS,
    COLUMNS,
    DATA_ALIGNMENT,
    DATASETS,
    INDEX_DTYPE,
    MOST_ATTRIBUTE_BYTES,
    OTHER_CODEC,
    SCHEMA,
    VERSION,
    encode_names,
)
from hvdyolo.data.memory_file import MemoryFile
from hvdyolo.utils.errors import UsageError
from hvdyolo.utils.files import storage_errors, sync_directory

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Attributes:
        encoded: the image file.
        format: Pillow's name of its format.
        labels: (n, 5) class, cx, cy, w, h in 0..1.
        flags: (n,) bits of :mod:`hvdyolo.data.format`.
        name: of the source file.
        sample_id: number of the image in its split, by name.
    """

    encoded: bytes
    format: str
    width: int
    height: int
    source_width: int
    source_height: int
    labels: NDArray[np.float32]
    flags: NDArray[np.uint8]
    name: str
    sample_id: int


@dataclass(frozen=True)
class ColumnsRecord:
    """What the manifest says about a shard's columns, by which they are read without HDF5.

    Attributes:
        label_ptr, name_ptr, labels, index, label_flags, names: where in the file each begins.
        name_bytes: length of ``names``.
        digest: xxh3-128 of all of them, end to end in this order, hexadecimal.
    """

    label_ptr: int
    name_ptr: int
    labels: int
    index: int
    label_flags: int
    names: int
    name_bytes: int
    digest: str


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says about a shard.

    Attributes:
        bytes: size of the file.
        data_offset, data_bytes: where ``/data`` lies in it.
        digest: xxh3-128 of all bytes outside ``/data``, hexadecimal.
    """

    file: str
    samples: int
    boxes: int
    bytes: int
    data_offset: int
    data_bytes: int
    digest: str
    columns: ColumnsRecord

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "ShardRecord":
        """Of what ``asdict`` gave.

        Raises:
            KeyError, TypeError: it did not.
        """
        return ShardRecord(**{**values, "columns": ColumnsRecord(**values["columns"])})

    def column_sizes(self) -> dict[str, int]:
        """Bytes of each column, in the order of :data:`hvdyolo.data.format.COLUMNS`."""
        pointers = (self.samples + 1) * DATASETS["label_ptr"].itemsize
        return {
            "label_ptr": pointers,
            "name_ptr": pointers,
            "labels": 5 * self.boxes * DATASETS["labels"].itemsize,
            "index": self.samples * INDEX_DTYPE.itemsize,
            "label_flags": self.boxes,
            "names": self.columns.name_bytes,
        }


@dataclass(frozen=True)
class ShardDescription:
    """What a shard says of itself beside its samples; kept in its attributes.

    Attributes:
        number: of the shard in its split, from 0.
        names: class names.
        settings: how it was packed.
    """

    split: str
    number: int
    names: tuple[str, ...]
    settings: Mapping[str, Any]


class ShardWriter:
    """Writes samples into one file, which is there when its ``with`` block ends well.

    Images go to the disk while more are added, and are not kept in memory. What else there is, some hundred
    bytes a sample, can only be written when all is known.

    Attributes:
        path: of the shard.
        record: what the manifest needs to know; set when the file is written.
    """

    def __init__(self, path: Path, description: ShardDescription, scratch: Path) -> None:
        """``scratch`` is the folder of the unfinished file, on the same file system."""
        self.record: ShardRecord | None = None
        self.path = path
        self._description = description
        self._temporary = scratch / f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
        self._samples: list[Sample] = []  # without their images
        self._lengths: list[int] = []
        self._checksums: list[int] = []

    def add(self, sample: Sample) -> None:
        """Append a sample.

        Raises:
            StorageError: this one or one before cannot be written.
        """
        self._lengths.append(len(sample.encoded))
        self._checksums.append(xxhash.xxh3_64_intdigest(sample.encoded))
        self._samples.append(replace(sample, encoded=b""))
        with storage_errors(self.path):
            self._images.add(sample.encoded)

    def __enter__(self) -> "ShardWriter":
        with storage_errors(self.path):
            try:
                self._temporary.touch()
                self._images = BlockWriter(self._temporary, DATA_ALIGNMENT)
            except OSError:
                self._temporary.unlink(missing_ok=True)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storage_errors(self.path):
            try:
                with self._images:
                    if kind is None:
                        self._finish()
            finally:
                self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        structure = MemoryFile()
        offset, columns = self._write_structure(structure)
        self._images.finish(offset, structure.pieces())
        record = self._record(offset, columns)
        os.replace(self._temporary, self.path)
        sync_directory(self.path.parent)
        self.record = record

    def _record(self, offset: int, columns: ColumnsRecord) -> ShardRecord:
        data_bytes = sum(self._lengths)
        return ShardRecord(
            file=self.path.name,
            samples=len(self._samples),
            boxes=sum(len(sample.labels) for sample in self._samples),
            bytes=self._temporary.stat().st_size,
            data_offset=offset,
            data_bytes=data_bytes,
            digest=digest_outside(self._temporary, offset, data_bytes),
            columns=columns,
        )

    def _write_structure(self, structure: MemoryFile) -> tuple[int, ColumnsRecord]:
        """Write everything but the images; returns where ``/data`` starts, and the columns."""
        data_bytes = sum(self._lengths)
        with _open_structure(structure, "w"):
            pass  # what HDF5 begins with would be aligned too
        # Only /data is to be aligned, and it is nearly always the largest by far.
        with _open_structure(structure, "r+", aligned=min(max(data_bytes, 1), DATA_ALIGNMENT)) as file:
            offset = _reserve_data(file, data_bytes)
            self._write_attributes(file)
            columns = self._columns()
            for name, values in columns.items():
                file.create_dataset(name, data=values)
            places = {name: file[name].id.get_offset() or 0 for name in COLUMNS}
        digest = xxhash.xxh3_128()
        for name in COLUMNS:
            digest.update(columns[name].tobytes())
        record = ColumnsRecord(**places, name_bytes=len(columns["names"]), digest=digest.hexdigest())
        return offset, record

    def _columns(self) -> dict[str, NDArray[Any]]:
        labels = [sample.labels for sample in self._samples]
        flags = [sample.flags for sample in self._samples]
        names = [sample.name.encode(errors="surrogateescape") for sample in self._samples]
        return {
            "index": self._index(),
            "labels": np.concatenate([np.zeros((0, 5), "<f4"), *labels]).astype("<f4"),
            "label_flags": np.concatenate([np.zeros(0, "u1"), *flags]),
            "label_ptr": _pointers([len(rows) for rows in labels]),
            "names": np.frombuffer(b"".join(names), dtype="u1"),
            "name_ptr": _pointers([len(name) for name in names]),
        }

    def _write_attributes(self, file: h5py.File) -> None:
        texts = {
            "schema": SCHEMA.encode(),
            "split": self._description.split.encode(),
            "names": encode_names(self._description.names),
            "settings": json.dumps(dict(self._description.settings), sort_keys=True).encode(),
        }
        numbers = {
            "version": VERSION,
            "shard": self._description.number,
            "samples": len(self._samples),
            "complete": 1,
        }
        for name, raw in texts.items():
            if len(raw) > MOST_ATTRIBUTE_BYTES:
                raise UsageError(f"The {name} take {len(raw)} bytes, which is more than a shard can hold.")
            # Of fixed length: what has a variable one lies in a heap, and damage to it goes unnoticed.
            file.attrs.create(name, np.bytes_(raw))
        for name, number in numbers.items():
            file.attrs.create(name, np.int64(number))

    def _index(self) -> NDArray[np.void]:
        index = np.zeros(len(self._samples), dtype=INDEX_DTYPE)
        index["offset"] = _pointers(self._lengths)[:-1]
        index["length"] = self._lengths
        index["checksum"] = self._checksums
        for name in ("width", "height", "source_width", "source_height", "sample_id"):
            index[name] = [getattr(sample, name) for sample in self._samples]
        index["codec"] = [CODECS.get(sample.format, OTHER_CODEC) for sample in self._samples]
        return index


def digest_outside(path: Path, data_offset: int, data_bytes: int) -> str:
    """xxh3-128 of a file's bytes before and after ``/data``, hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        remaining = data_offset
        while remaining and (block := stream.read(min(remaining, _BLOCK_BYTES))):
            digest.update(block)
            remaining -= len(block)
        stream.seek(data_offset + data_bytes)
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _open_structure(file: MemoryFile, mode: str, aligned: int = DATA_ALIGNMENT) -> h5py.File:
    """As HDF5; what has ``aligned`` bytes or more, it lets begin at a multiple of 1 MiB."""
    return h5py.File(
        file,
        mode,
        # Not 'latest': what HDF5 2.0 writes by it, 1.14 cannot read.
        libver=("v110", "v110"),
        alignment_threshold=aligned,
        alignment_interval=DATA_ALIGNMENT,
    )


def _pointers(lengths: list[int]) -> NDArray[np.uint64]:
    """Where each of some runs starts, and where the last one ends."""
    return np.cumsum([0, *lengths], dtype=np.uint64)


def _reserve_data(file: h5py.File, size: int) -> int:
    """Create ``/data`` without writing it; returns where it starts, 0 if it is empty."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # times would make equal packings differ
    space = h5py.h5s.create_simple((size,))
    dataset = h5py.h5d.create(file.id, b"data", h5py.h5t.STD_U8LE, space, properties)
    return dataset.get_offset() or 0
