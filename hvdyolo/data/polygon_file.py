"""The polygons of a split in a file beside its shards, for datasets that are packed with them.

A header, a pointer to each sample's entry, the entries. An entry has a checksum that tells whose it is, so
that one sample's is read and checked by itself: nothing of the file need be in memory.
docs/shard_format.md specifies it.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hvdyolo.data.outlines import LEAST_ENTRY, MOST_ENTRY, Outlines, decode_outlines, polygon_count
from hvdyolo.data.verified_file import read_verified
from hvdyolo.utils.errors import DataError, StorageError
from hvdyolo.utils.files import storage_errors, sync_directory

_MAGIC, _VERSION = b"hvdyolo.polygons", 1
_HEADER = struct.Struct("<16sQQ")  # magic, version, samples
_RUN = struct.Struct("<QQ")  # two neighbouring pointers
_POINTER_BYTES = 8


@dataclass(frozen=True)
class PolygonsRecord:
    """What the manifest says about a file of polygons.

    Attributes:
        polygons: how many are in it.
        bytes: its size.
        digest: xxh3-128 of all its bytes, hexadecimal.
    """

    file: str
    polygons: int
    bytes: int
    digest: str


def write_polygons(path: Path, scratch: Path, entries: Sequence[bytes]) -> PolygonsRecord:
    """Write the entries of some samples in their order, by way of the folder ``scratch``.

    Raises:
        StorageError: it cannot be written.
    """
    lengths = np.array([len(entry) for entry in entries], dtype=np.uint64)
    return _write(path, scratch, [_head(lengths), *entries], sum(map(polygon_count, entries)))


def join_polygons(path: Path, scratch: Path, parts: Sequence[PolygonsRecord]) -> PolygonsRecord:
    """Write what some files in ``scratch`` hold, in their order, as one; in memory is one at a time.

    Raises:
        DataError: a part is damaged already.
        StorageError: it cannot be written.
    """

    def read(part: PolygonsRecord) -> bytes:
        return b"".join(read_verified(scratch / part.file, part.bytes, part.digest))

    lengths = [np.diff(_pointers(read(part))) for part in parts]
    head = _head(np.concatenate([np.zeros(0, dtype=np.uint64), *lengths]))
    bodies = (raw[int(_pointers(raw)[0]) :] for raw in map(read, parts))
    blocks = (block for some in ([head], bodies) for block in some)
    return _write(path, scratch, blocks, sum(part.polygons for part in parts))


def copy_polygons(root: Path, record: PolygonsRecord, out: Path, scratch: Path) -> None:
    """Copy the file of ``root`` that is described to ``out``, by way of ``scratch``.

    Raises:
        DataError: it is missing or damaged.
        StorageError: the file system fails.
    """
    blocks = read_verified(root / record.file, record.bytes, record.digest)
    _write(out / record.file, scratch, blocks, record.polygons)


def _write(path: Path, scratch: Path, blocks: Iterable[bytes], polygons: int) -> PolygonsRecord:
    temporary = scratch / f"{path.name}.tmp"
    digest = xxhash.xxh3_128()
    with storage_errors(path):
        with open(temporary, "wb") as stream:
            for block in blocks:
                stream.write(block)
                digest.update(block)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        os.replace(temporary, path)
        sync_directory(path.parent)
    return PolygonsRecord(path.name, polygons, size, digest.hexdigest())


def _head(lengths: NDArray[np.uint64]) -> bytes:
    """Header and pointers of entries of such lengths."""
    first = _HEADER.size + (len(lengths) + 1) * _POINTER_BYTES
    pointers = np.concatenate([np.array([first], dtype=np.uint64), lengths]).cumsum(dtype=np.uint64)
    return _HEADER.pack(_MAGIC, _VERSION, len(lengths)) + pointers.astype("<u8").tobytes()


def _pointers(raw: bytes) -> NDArray[np.uint64]:
    """Of a whole file that is sound."""
    samples = _HEADER.unpack_from(raw)[2]
    return np.frombuffer(raw, "<u8", samples + 1, _HEADER.size)


def check_polygons(path: Path, record: PolygonsRecord, samples: int) -> None:
    """See that there is such a file; what is in it is checked as it is read.

    Raises:
        DataError: it is missing, cut, or the file of another split.
        StorageError: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER.size)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy it again or pack the dataset again.") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}.") from None
    if size != record.bytes:
        raise DataError(f"{path} has {size} bytes and should have {record.bytes}; copy it again.")
    if header != _HEADER.pack(_MAGIC, _VERSION, samples):
        raise DataError(f"{path} is damaged; copy it again or pack the dataset again.")


def read_outlines(descriptor: int, size: int, place: int, sample_id: int, labels: int) -> Outlines:
    """The outlines of the labels of one sample, at a place of the split, from an open file of that size.

    Raises:
        ValueError: they are damaged.
        OSError: the file system fails.
    """
    run = os.pread(descriptor, _RUN.size, _HEADER.size + place * _POINTER_BYTES)
    if len(run) != _RUN.size:
        raise ValueError("cut")
    first, last = _RUN.unpack(run)
    if not (last <= size and LEAST_ENTRY <= last - first <= MOST_ENTRY):
        raise ValueError("pointers")
    return decode_outlines(os.pread(descriptor, last - first, first), sample_id, labels)
