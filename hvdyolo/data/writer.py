"""Writing one shard."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from hvdyolo.data.format import (
    CODECS,
    DATA_ALIGNMENT,
    INDEX_DTYPE,
    MOST_ATTRIBUTE_BYTES,
    OTHER_CODEC,
    SCHEMA,
    VERSION,
)
from hvdyolo.utils.errors import UsageError
from hvdyolo.utils.files import storage_errors, sync_directory

_BLOCK_BYTES = 8 << 20
_MOST_PIECES = 1000  # of one call; the system takes 1024


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


@dataclass
class ShardWriter:
    """Collects samples and writes them as one file when its ``with`` block ends well.

    A shard is held in memory until then: the exact sizes are known, so ``/data`` is one contiguous piece and
    the file is written once, in order.

    Attributes:
        path: of the shard.
        scratch: folder of the unfinished file, on the same file system.
        record: what the manifest needs to know; set when the file is written.
    """

    path: Path
    description: ShardDescription
    scratch: Path
    record: ShardRecord | None = None
    samples: list[Sample] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        self.samples.append(sample)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._write()

    def _write(self) -> None:
        temporary = self.scratch / f"{self.path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
        with storage_errors(self.path):
            try:
                offset = self._write_structure(temporary)
                _write_blocks(temporary, offset, [sample.encoded for sample in self.samples])
                record = self._record(temporary, offset)
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(self.path.parent)
        self.record = record

    def _record(self, path: Path, offset: int) -> ShardRecord:
        data_bytes = sum(len(sample.encoded) for sample in self.samples)
        return ShardRecord(
            file=self.path.name,
            samples=len(self.samples),
            boxes=sum(len(sample.labels) for sample in self.samples),
            bytes=path.stat().st_size,
            data_offset=offset,
            data_bytes=data_bytes,
            digest=digest_outside(path, offset, data_bytes),
        )

    def _write_structure(self, path: Path) -> int:
        """Create the file with everything but the images; returns where ``/data`` starts."""
        data_bytes = sum(len(sample.encoded) for sample in self.samples)
        with h5py.File(
            path,
            "w",
            # Not 'latest': what HDF5 2.0 writes by it, 1.14 cannot read.
            libver=("v110", "v110"),
            # Only /data is to be aligned, and it is nearly always the largest by far.
            alignment_threshold=min(max(data_bytes, 1), DATA_ALIGNMENT),
            alignment_interval=DATA_ALIGNMENT,
            locking=False,  # many parallel file systems have none, and the name is this writer's own
        ) as file:
            self._write_attributes(file)
            file.create_dataset("index", data=self._index())
            labels = [sample.labels for sample in self.samples]
            file.create_dataset(
                "labels", data=np.concatenate([np.zeros((0, 5), "<f4"), *labels]).astype("<f4")
            )
            flags = [sample.flags for sample in self.samples]
            file.create_dataset("label_flags", data=np.concatenate([np.zeros(0, "u1"), *flags]))
            file.create_dataset("label_ptr", data=_pointers([len(rows) for rows in labels]))
            names = [sample.name.encode(errors="surrogateescape") for sample in self.samples]
            file.create_dataset("names", data=np.frombuffer(b"".join(names), dtype="u1"))
            file.create_dataset("name_ptr", data=_pointers([len(name) for name in names]))
            return _reserve_data(file, data_bytes)

    def _write_attributes(self, file: h5py.File) -> None:
        texts = {
            "schema": SCHEMA,
            "split": self.description.split,
            "names": json.dumps(list(self.description.names)),
            "settings": json.dumps(dict(self.description.settings), sort_keys=True),
        }
        numbers = {
            "version": VERSION,
            "shard": self.description.number,
            "samples": len(self.samples),
            "complete": 1,
        }
        for name, text in texts.items():
            raw = text.encode()
            if len(raw) >= MOST_ATTRIBUTE_BYTES // 2:
                raise UsageError(f"The {name} take {len(raw)} bytes, which is more than a shard can hold.")
            # Of fixed length: what has a variable one lies in a heap, and damage to it goes unnoticed.
            file.attrs.create(name, np.bytes_(raw))
        for name, number in numbers.items():
            file.attrs.create(name, np.int64(number))

    def _index(self) -> NDArray[np.void]:
        index = np.zeros(len(self.samples), dtype=INDEX_DTYPE)
        lengths = [len(sample.encoded) for sample in self.samples]
        index["offset"] = _pointers(lengths)[:-1]
        index["length"] = lengths
        index["checksum"] = [xxhash.xxh3_64_intdigest(sample.encoded) for sample in self.samples]
        for name in ("width", "height", "source_width", "source_height", "sample_id"):
            index[name] = [getattr(sample, name) for sample in self.samples]
        index["codec"] = [CODECS.get(sample.format, OTHER_CODEC) for sample in self.samples]
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


def _write_blocks(path: Path, offset: int, pieces: Sequence[bytes]) -> None:
    """Write pieces back to back from ``offset`` on, in large blocks, and sync the file."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        block: list[memoryview] = []
        room = _BLOCK_BYTES
        for piece in pieces:
            rest = memoryview(piece)
            while len(rest) >= room or len(block) == _MOST_PIECES:
                offset = _write_block(descriptor, [*block, rest[:room]], offset)
                block, rest, room = [], rest[room:], _BLOCK_BYTES
            block.append(rest)
            room -= len(rest)
        _write_block(descriptor, block, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_block(descriptor: int, block: list[memoryview], offset: int) -> int:
    """Write pieces, without joining them first, at ``offset``; returns where they end."""
    while block:
        written = os.pwritev(descriptor, block, offset)
        offset += written
        while block and written >= len(block[0]):
            written -= len(block.pop(0))
        if block:
            block[0] = block[0][written:]
    return offset


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
