"""The index of a split: what its shards hold besides images, in one piece, read from them without HDF5.

A block a shard, in their order; in a block the shard's columns, as they are in the shard. The manifest says
where they lie in its file, so a plain read finds them, and what their digest is.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from hvdyolo.data.format import COLUMNS, DATASETS
from hvdyolo.data.node_memory import Bytes, Write
from hvdyolo.data.shard import Shard, check_columns
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, StorageError

_ALIGNMENT = 8  # of blocks, so that numbers can be read where they lie
# Shards that are read at once: a parallel file system takes a millisecond to open one. Eight were slower than
# two where all is in the cache, for they share Python's lock.
_READERS = 2


@dataclass(frozen=True, slots=True)
class Block:
    """One shard's block.

    Attributes:
        first: number, in the split, of the shard's first sample.
        label_ptr, name_ptr, labels, rows, label_flags, names: where in the split's index a column begins,
            bytes; ``rows`` is that of the shard's own ``index``.
    """

    shard: ShardRecord
    first: int
    label_ptr: int
    name_ptr: int
    labels: int
    rows: int
    label_flags: int
    names: int


class SplitIndex:
    """The index of some shards, as it is read from them.

    Attributes:
        size: of it, bytes.
        blocks: where in it each shard's is.
    """

    def __init__(self, root: Path, shards: Sequence[ShardRecord], classes: int) -> None:
        """``classes``: how many the labels may have."""
        self._root = root
        self._classes = classes
        self.blocks, self.size = _lay_out(shards)

    def copy_to(self, write: Write) -> None:
        """Read the blocks, verify each, check what it says, and hand it to ``write``.

        Raises:
            DataError: a shard is missing, cut, damaged in what is read of it, or says what cannot be.
            StorageError: one cannot be read for another reason.
        """
        own = threading.local()  # each reader has memory that stays in its core's cache

        def copy_one(block: Block) -> None:
            size = _end(block) - block.label_ptr
            if size > len(getattr(own, "memory", b"")):
                own.memory = bytearray(size)
            raw = memoryview(own.memory)[:size]
            _read_columns(self._root, block.shard, raw)
            columns = columns_of(raw, block.shard, start=0)
            check_columns(columns, self._root / block.shard.file, block.shard, self._classes)
            write(raw, block.label_ptr)

        with ThreadPoolExecutor(_READERS) as readers:
            for _ in readers.map(copy_one, self.blocks):  # raises what one of them does, and ends the others
                pass

    def matches(self, data: Bytes) -> bool:
        """Whether these bytes, as many as there should be, are the blocks."""
        whole = memoryview(data)
        return all(
            xxh3_128_hexdigest(whole[block.label_ptr : _end(block)]) == block.shard.columns.digest
            for block in self.blocks
        )


def block_of(shard: Shard) -> bytes:
    """The columns of a shard, end to end, which their digest in the manifest is of."""
    rows = np.empty(len(shard.lengths), dtype=DATASETS["index"])
    rows["offset"] = shard.starts - shard.starts[:1]
    shard.fill_rows(rows)
    columns: dict[str, NDArray[Any]] = {
        "label_ptr": shard.label_ptr,
        "name_ptr": shard.name_ptr,
        "labels": shard.labels,
        "index": rows,
        "label_flags": shard.label_flags,
        "names": np.frombuffer(shard.names, dtype=np.uint8),
    }
    return b"".join(columns[name].astype(DATASETS[name], copy=False).tobytes() for name in COLUMNS)


def check_block(root: Path, record: ShardRecord, shard: Shard) -> None:
    """See that what is read of a shard by the manifest is what HDF5 has found in it.

    Raises:
        DataError: it is not, or cannot be read.
        StorageError: the file system fails.
    """
    columns = bytearray(sum(record.column_sizes().values()))
    _read_columns(root, record, memoryview(columns))
    if columns != block_of(shard):
        raise DataError(f"{shard.path} has its columns elsewhere than the manifest says; pack again.")


def columns_of(index: Bytes | memoryview, shard: ShardRecord, start: int) -> dict[str, NDArray[Any]]:
    """By the names of the datasets of a shard whose block begins at ``start``, without copying."""
    columns = {}
    for name, size in shard.column_sizes().items():
        columns[name] = np.frombuffer(index, DATASETS[name], size // DATASETS[name].itemsize, start)
        start += size
    return {**columns, "labels": columns["labels"].reshape(-1, 5)}


def _lay_out(shards: Sequence[ShardRecord]) -> tuple[list[Block], int]:
    """The block of each shard, and the end of the last."""
    blocks = []
    first = place = 0
    for shard in shards:
        starts = []
        for size in shard.column_sizes().values():
            starts.append(place)
            place += size
        blocks.append(Block(shard, first, *starts))
        first += shard.samples
        place += -place % _ALIGNMENT
    return blocks, place


def _end(block: Block) -> int:
    return block.names + block.shard.columns.name_bytes


def _read_columns(root: Path, shard: ShardRecord, target: memoryview) -> None:
    """Fill ``target``, which has their size, with the columns of a shard, end to end."""
    path = root / shard.file
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size != shard.bytes:
                raise DataError(f"{path} has {size} bytes and should have {shard.bytes}; copy it again.")
            place = 0
            for name, length in shard.column_sizes().items():
                _read_span(descriptor, getattr(shard.columns, name), target[place : place + length])
                place += length
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy it again or pack the dataset again.") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}.") from None
    if xxh3_128_hexdigest(target) != shard.columns.digest:
        raise DataError(f"{path} is damaged; copy it again or pack the dataset again.")


def _read_span(descriptor: int, start: int, target: memoryview) -> None:
    """Fill ``target`` as far as the file goes; a read ends at 2 GiB, and earlier on some file systems."""
    while target and (read := os.preadv(descriptor, [target], start)):
        target = target[read:]
        start += read
