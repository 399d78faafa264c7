"""The index of a split in one file: what its shards hold besides images, so that opening is one read.

A block a shard, in their order; in a block the shard's columns, as they are in the shard. A block's size
follows from the manifest and from the block itself, so the file needs no table. docs/shard_format.md
specifies it.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hvdyolo.data.format import DATASETS, INDEX_DTYPE
from hvdyolo.data.shard import Shard, check_columns
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError
from hvdyolo.utils.files import storage_errors, sync_directory

Index = bytes | mmap
"""The bytes of an index file."""

POINTER = struct.Struct("<Q")
BOX_BYTES = 5 * DATASETS["labels"].itemsize
ROW_BYTES = INDEX_DTYPE.itemsize
_ALIGNMENT = 8  # of blocks: whoever maps the file may then read numbers where they lie


@dataclass(frozen=True)
class IndexRecord:
    """What the manifest says about an index file.

    Attributes:
        bytes: its size.
        digest: xxh3-128 of all its bytes, hexadecimal.
    """

    file: str
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Block:
    """One shard's block.

    Attributes:
        first: number, in the split, of the shard's first sample.
        label_ptr, name_ptr, labels, rows, label_flags, names: where in the file a column begins, bytes.
    """

    shard: ShardRecord
    first: int
    label_ptr: int
    name_ptr: int
    labels: int
    rows: int
    label_flags: int
    names: int


def block_of(shard: Shard) -> bytes:
    """The block of a shard."""
    rows = np.empty(len(shard.lengths), dtype=INDEX_DTYPE)
    rows["offset"] = shard.starts - shard.starts[:1]
    shard.fill_rows(rows)
    columns: dict[str, NDArray[Any]] = {
        "label_ptr": shard.label_ptr,
        "name_ptr": shard.name_ptr,
        "labels": shard.labels,
        "index": rows,
        "label_flags": shard.label_flags,
    }
    raw = [column.astype(DATASETS[name], copy=False).tobytes() for name, column in columns.items()]
    block = b"".join([*raw, shard.names])
    return block + bytes(-len(block) % _ALIGNMENT)


def find_blocks(index: Index, shards: Sequence[ShardRecord], path: Path) -> list[Block]:
    """The block of each shard; no column of any lies outside ``index``.

    Raises:
        DataError: they do not fill it; names ``path``.
    """
    blocks = []
    first = start = 0
    for shard in shards:
        pointers = (shard.samples + 1) * POINTER.size
        labels = start + 2 * pointers
        rows = labels + shard.boxes * BOX_BYTES
        label_flags = rows + shard.samples * ROW_BYTES
        names = label_flags + shard.boxes
        if names > len(index):
            break
        blocks.append(Block(shard, first, start, start + pointers, labels, rows, label_flags, names))
        (name_bytes,) = POINTER.unpack_from(index, labels - POINTER.size)
        first += shard.samples
        start = names + name_bytes
        start += -start % _ALIGNMENT
    if len(blocks) != len(shards) or start != len(index):
        raise DataError(f"{path} does not fit the manifest; copy it again or pack the dataset again.")
    return blocks


def check_index(index: Index, shards: Sequence[ShardRecord], classes: int, path: Path) -> None:
    """Check an index as the shards themselves are checked.

    Raises:
        DataError: something cannot be; names ``path``.
    """
    for block in find_blocks(index, shards, path):
        check_columns(columns_of(index, block), path, block.shard, classes)


def columns_of(index: Index, block: Block) -> dict[str, NDArray[Any]]:
    """By the names of the datasets of a shard, without copying."""
    samples, boxes = block.shard.samples, block.shard.boxes
    name_bytes = POINTER.unpack_from(index, block.labels - POINTER.size)[0]
    places = {
        "label_ptr": (block.label_ptr, samples + 1),
        "name_ptr": (block.name_ptr, samples + 1),
        "labels": (block.labels, boxes * 5),
        "index": (block.rows, samples),
        "label_flags": (block.label_flags, boxes),
        "names": (block.names, name_bytes),
    }
    columns = {
        name: np.frombuffer(index, DATASETS[name], count, offset) for name, (offset, count) in places.items()
    }
    return {**columns, "labels": columns["labels"].reshape(-1, 5)}


class IndexWriter:
    """Writes an index file, block by block; it has its name when its ``with`` block ends well.

    Attributes:
        record: what the manifest needs to know; set when the file is written.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        """``scratch``: folder of the unfinished file, on the same file system."""
        self.record: IndexRecord | None = None
        self._path = path
        self._temporary = scratch / f"{path.name}.tmp"
        self._digest = xxhash.xxh3_128()
        self._bytes = 0

    def __enter__(self) -> "IndexWriter":
        with storage_errors(self._path):
            self._stream = open(self._temporary, "wb")
        return self

    def add(self, shard: Shard) -> None:
        """Append the block of the next shard."""
        block = block_of(shard)
        with storage_errors(self._path):
            self._stream.write(block)
        self._digest.update(block)
        self._bytes += len(block)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storage_errors(self._path), self._stream as stream:
            if kind is not None:
                return
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(self._temporary, self._path)
            sync_directory(self._path.parent)
        self.record = IndexRecord(self._path.name, self._bytes, self._digest.hexdigest())
