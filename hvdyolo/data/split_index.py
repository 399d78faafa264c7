"""The index of a split: what its shards hold besides images, in one piece, read from them without HDF5.

A block a shard, in their order; in a block the shard's columns, as they are in the shard. The manifest says
where they lie in its file, so a plain read finds them, and what their digest is.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from hvdyolo.data.format import COLUMNS, DATASETS
from hvdyolo.data.shard import Shard, check_columns
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, StorageError

Index = bytes | mmap
"""The bytes of an index."""

_ALIGNMENT = 8  # of blocks, so that numbers can be read where they lie
# Shards that are read at once: a parallel file system takes a millisecond to open one.
_READERS = 8


@dataclass(frozen=True, slots=True)
class Block:
    """One shard's block.

    Attributes:
        first: number, in the split, of the shard's first sample.
        label_ptr, name_ptr, labels, rows, label_flags, names: where in the index a column begins, bytes.
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

    def __init__(self, root: Path, shards: Sequence[ShardRecord]) -> None:
        self._root = root
        self.blocks, self.size = _lay_out(shards)

    def pieces(self) -> Iterator[bytes]:
        """The blocks, each verified as it comes.

        Raises:
            DataError: a shard is missing, cut, or damaged in what is read of it.
            StorageError: one cannot be read for another reason.
        """
        waiting: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(_READERS) as readers:
            for block in self.blocks:
                waiting.append(readers.submit(_read_block, self._root, block.shard))
                if len(waiting) > _READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def matches(self, data: Index) -> bool:
        """Whether these bytes, as many as there should be, are the blocks."""
        whole = memoryview(data)
        return all(
            xxh3_128_hexdigest(whole[block.label_ptr : block.names + block.shard.columns.name_bytes])
            == block.shard.columns.digest
            for block in self.blocks
        )

    def check(self, data: Index, classes: int) -> None:
        """Check what the blocks say, as that of shards that HDF5 opens is checked.

        Raises:
            DataError: something cannot be; names the shard.
        """
        for block in self.blocks:
            check_columns(columns_of(data, block), self._root / block.shard.file, block.shard, classes)


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
    }
    raw = [column.astype(DATASETS[name], copy=False).tobytes() for name, column in columns.items()]
    return b"".join([*raw, shard.names])


def check_block(root: Path, record: ShardRecord, shard: Shard) -> None:
    """See that what is read of a shard by the manifest is what HDF5 has found in it.

    Raises:
        DataError: it is not, or cannot be read.
        StorageError: the file system fails.
    """
    if _read_columns(root, record) != block_of(shard):
        raise DataError(f"{shard.path} has its columns elsewhere than the manifest says; pack again.")


def columns_of(index: Index, block: Block) -> dict[str, NDArray[Any]]:
    """By the names of the datasets of a shard, without copying."""
    starts = (block.label_ptr, block.name_ptr, block.labels, block.rows, block.label_flags, block.names)
    columns = {
        name: np.frombuffer(index, DATASETS[name], size // DATASETS[name].itemsize, start)
        for (name, size), start in zip(block.shard.column_sizes().items(), starts, strict=True)
    }
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


def _read_block(root: Path, shard: ShardRecord) -> bytes:
    raw = _read_columns(root, shard)
    return raw + bytes(-len(raw) % _ALIGNMENT)


def _read_columns(root: Path, shard: ShardRecord) -> bytes:
    path = root / shard.file
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size != shard.bytes:
                raise DataError(f"{path} has {size} bytes and should have {shard.bytes}; copy it again.")
            read = partial(os.pread, descriptor)
            sizes = shard.column_sizes()
            raw = b"".join([read(sizes[name], getattr(shard.columns, name)) for name in COLUMNS])
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy it again or pack the dataset again.") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}.") from None
    if xxh3_128_hexdigest(raw) != shard.columns.digest:
        raise DataError(f"{path} is damaged; copy it again or pack the dataset again.")
    return raw
