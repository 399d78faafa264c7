"""Writing one shard."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from hvdyolo.data.format import CODECS, DATA_ALIGNMENT, INDEX_DTYPE, OTHER_CODEC, SCHEMA, VERSION
from hvdyolo.utils.files import storage_errors, sync_directory

_WRITE_BYTES = 8 << 20
_DIGEST_BYTES = 8 << 20


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
        digest: xxh3-128 of all bytes outside ``/data``, hexadecimal.
    """

    file: str
    samples: int
    boxes: int
    bytes: int
    data_offset: int
    data_bytes: int
    digest: str


@dataclass
class ShardWriter:
    """Collects samples and writes them as one file when its ``with`` block ends well.

    A shard is held in memory until then: the exact sizes are known, so ``/data`` is one contiguous piece and
    the file is written once, in order.

    Attributes:
        path: of the shard.
        attributes: of the file: split, number, class names, packing settings.
        record: what the manifest needs to know; set when the file is written.
    """

    path: Path
    attributes: dict[str, str | int]
    samples: list[Sample] = field(default_factory=list)
    record: ShardRecord | None = None

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
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with storage_errors(self.path):
            try:
                offset = self._write_structure(temporary)
                self._write_data(temporary, offset)
                data_bytes = sum(len(sample.encoded) for sample in self.samples)
                self.record = ShardRecord(
                    file=self.path.name,
                    samples=len(self.samples),
                    boxes=sum(len(sample.labels) for sample in self.samples),
                    bytes=temporary.stat().st_size,
                    data_offset=offset,
                    data_bytes=data_bytes,
                    digest=digest_outside(temporary, offset, data_bytes),
                )
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(self.path.parent)

    def _write_structure(self, path: Path) -> int:
        """Create the file with everything but the images; returns where ``/data`` starts."""
        # Not 'latest': what HDF5 2.0 writes by it, 1.14 cannot read.
        with h5py.File(
            path,
            "w",
            libver=("v110", "v110"),
            alignment_threshold=DATA_ALIGNMENT,
            alignment_interval=DATA_ALIGNMENT,
        ) as file:
            for name, value in sorted(self.attributes.items()):
                file.attrs[name] = value
            file.attrs["schema"] = SCHEMA
            file.attrs["version"] = VERSION
            file.attrs["samples"] = len(self.samples)
            file.create_dataset("index", data=self._index())
            labels = [sample.labels for sample in self.samples]
            file.create_dataset(
                "labels", data=np.concatenate([np.zeros((0, 5), "<f4"), *labels]).astype("<f4")
            )
            flags = [sample.flags for sample in self.samples]
            file.create_dataset("label_flags", data=np.concatenate([np.zeros(0, "u1"), *flags]))
            file.create_dataset("label_ptr", data=_pointers([len(rows) for rows in labels]))
            names = [sample.name.encode() for sample in self.samples]
            file.create_dataset("names", data=np.frombuffer(b"".join(names), dtype="u1"))
            file.create_dataset("name_ptr", data=_pointers([len(name) for name in names]))
            offset = _reserve_data(file, sum(len(sample.encoded) for sample in self.samples))
            file.attrs["complete"] = 1
        return offset

    def _index(self) -> NDArray[np.void]:
        index = np.zeros(len(self.samples), dtype=INDEX_DTYPE)
        offset = 0
        for row, sample in zip(index, self.samples, strict=True):
            row["offset"] = offset
            row["length"] = len(sample.encoded)
            row["checksum"] = xxhash.xxh3_64_intdigest(sample.encoded)
            row["width"], row["height"] = sample.width, sample.height
            row["source_width"], row["source_height"] = sample.source_width, sample.source_height
            row["sample_id"] = sample.sample_id
            row["codec"] = CODECS.get(sample.format, OTHER_CODEC)
            offset += len(sample.encoded)
        return index

    def _write_data(self, path: Path, offset: int) -> None:
        with open(path, "rb+", buffering=_WRITE_BYTES) as stream:
            stream.seek(offset)
            for sample in self.samples:
                stream.write(sample.encoded)
            stream.flush()
            os.fsync(stream.fileno())


def digest_outside(path: Path, data_offset: int, data_bytes: int) -> str:
    """xxh3-128 of a file's bytes before and after ``/data``, hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        digest.update(stream.read(data_offset))
        stream.seek(data_offset + data_bytes)
        while block := stream.read(_DIGEST_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _pointers(lengths: list[int]) -> NDArray[np.uint64]:
    """Where each of some runs starts, and where the last one ends."""
    return np.cumsum([0, *lengths], dtype=np.uint64)


def _reserve_data(file: h5py.File, size: int) -> int:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # times would make equal packings differ
    space = h5py.h5s.create_simple((size,))
    dataset = h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT8, space, properties)
    offset: int | None = dataset.get_offset()
    assert offset is not None
    return offset
