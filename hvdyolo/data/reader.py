"""Reading samples of a packed split with ``pread``: no HDF5 in the loader's way."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from hvdyolo.data.format import CROWD, DATASETS, INDEX_DTYPE
from hvdyolo.data.manifest import SplitInfo, polygons_of, read_manifest
from hvdyolo.data.node_memory import NodeMemory
from hvdyolo.data.outlines import Outlines
from hvdyolo.data.polygon_file import check_polygons, read_outlines
from hvdyolo.data.split_index import Block, SplitIndex, columns_of
from hvdyolo.utils.errors import DataError, StorageError, UsageError

EncodedT = TypeVar("EncodedT", bytes, memoryview)

_MOST_OPEN_FILES = 64
_USUAL_BYTES = 1 << 20  # of an image or less; memory that is not written to costs nothing

# Parts of a row of the index, and where they begin in it.
_PLACE = Struct("<QIQ")  # offset, length, checksum
_SIZE, _SIZE_AT, _SOURCE_SIZE_AT = Struct("<HH"), 20, 24  # width, height
_SAMPLE_ID_AT = 28
_POINTER, _RUN = Struct("<Q"), Struct("<QQ")  # one, and two neighbouring ones
_ROW_BYTES = INDEX_DTYPE.itemsize
_BOX_BYTES = 5 * DATASETS["labels"].itemsize


class DamagedSampleError(DataError):
    """One sample is not what was packed; the others may still be."""


@dataclass(frozen=True, eq=False)
class SampleColumns:
    """What a shard tells of n neighbouring samples with m boxes, but for their pixels; read-only.

    Attributes:
        first: number of the first of them.
        first_box: number, in the split, of the first of their boxes.
        heights, widths: (n,) of the stored images, pixels.
        boxes: (n,) boxes of each.
        labels: (m, 5) class, cx, cy, w, h in 0..1 of the image.
        flags: (m,) bits, as of :meth:`PackedSplit.flags`.
    """

    first: int
    first_box: int
    heights: NDArray[np.uint16]
    widths: NDArray[np.uint16]
    boxes: NDArray[np.uint64]
    labels: NDArray[np.float32]
    flags: NDArray[np.uint8]

    @property
    def owners(self) -> NDArray[np.int64]:
        """(m,) the sample of each box, counted from ``first``."""
        return np.repeat(np.arange(len(self.boxes)), self.boxes.astype(np.int64))


class PackedSplit:
    """Random access to all samples of a split.

    The index is read once, when the split is opened; a large one lies in memory once a node
    (:mod:`hvdyolo.data.node_memory`). Files are opened when first needed, in the process that needs them:
    pickling and copying leave them behind, so no descriptor crosses into a worker. Threads need a copy each.
    Arrays that are handed out are read-only.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        verify: bool = True,
        shards: Path | None = None,
        outlines: bool = False,
    ) -> None:
        """Args:
            verify: check each sample's checksum as it is read.
            shards: directory of the split's shards, if they are not read from ``root``.
            outlines: they will be asked for too.

        Raises:
            UsageError: there is no such dataset or split, or it has no outlines.
            DataError: a shard is missing or damaged outside its images, or the split is empty.
            StorageError: the file system fails.
            MismatchError: the dataset is of another version of the format.
        """
        manifest = read_manifest(root)
        if split not in manifest.splits:
            raise UsageError(f"{root} has no split '{split}'; it has {', '.join(manifest.splits)}.")
        info = manifest.splits[split]
        if info.samples == 0:
            raise DataError(f"The split '{split}' of {root} is empty; pack one that holds images.")
        self.names = manifest.names
        self.dataset_id = manifest.dataset_id
        self.verifies = verify
        self._shards = shards or root
        index = SplitIndex(self._shards, info.shards, len(self.names))
        self._index = NodeMemory(index, _name_of_copies(info, len(self.names)))
        self._blocks = index.blocks
        self._firsts = [block.first for block in self._blocks]
        self._samples = info.samples
        self._files: OrderedDict[str, int] = OrderedDict()
        self._polygons = polygons_of(manifest, split, root) if outlines else None
        if self._polygons is not None:
            check_polygons(self._shards / self._polygons.file, self._polygons, info.samples)

    def __len__(self) -> int:
        return self._samples

    def read(self, index: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            DamagedSampleError: its checksum differs or the file ends early; names shard, record and file.
            DataError: the shard is missing.
            StorageError: the file system fails.
        """
        return self._read(index, os.pread)

    def read_many(self, indices: Iterable[int]) -> Iterator[memoryview]:
        """The encoded images of some samples in turn, each in memory that the next one is read into.

        New memory can cost as much as the reading: 12 microseconds instead of 6 for 21 kB where the allocator
        gives memory back to the system each time, 15 instead of 12 for 110 kB where a batch is kept.

        Raises:
            DamagedSampleError, DataError, StorageError: as :meth:`read`, when it is a sample's turn.
        """
        read = _ReusedMemory().pread
        for index in indices:
            yield self._read(index, read)

    def _read(self, index: int, pread: Callable[[int, int, int], EncodedT]) -> EncodedT:
        # Runs once a sample, and its own time is to stay small beside the 10 microseconds of the pread.
        block = self._block(index)
        offset, length, checksum = _PLACE.unpack_from(
            self._index.data, block.rows + (index - block.first) * _ROW_BYTES
        )
        file = block.shard.file
        descriptor = self._files.get(file)
        try:
            if descriptor is None:
                descriptor = self._open(file)
            encoded = pread(descriptor, length, block.shard.data_offset + offset)
        except FileNotFoundError:
            raise DataError(f"{self._shards / file} is missing; copy it again.") from None
        except OSError as error:
            raise StorageError(f"cannot read {self._shards / file}: {error.strerror}.") from error
        if len(encoded) != length or (self.verifies and xxh3_64_intdigest(encoded) != checksum):
            raise DamagedSampleError(f"{self.describe(index)} is damaged; copy the shard again.")
        return encoded

    def labels(self, index: int) -> NDArray[np.float32]:
        """(n, 5) class, cx, cy, w, h in 0..1 of the image."""
        block = self._block(index)
        first, last = self._run(block.label_ptr, index - block.first)
        return np.frombuffer(
            self._index.data, DATASETS["labels"], 5 * (last - first), block.labels + first * _BOX_BYTES
        ).reshape(-1, 5)

    def flags(self, index: int) -> NDArray[np.uint8]:
        """(n,) bits: 1 crowd, 2 difficult, 4 truncated (:mod:`hvdyolo.data.format`)."""
        block = self._block(index)
        first, last = self._run(block.label_ptr, index - block.first)
        return np.frombuffer(self._index.data, np.uint8, last - first, block.label_flags + first)

    @property
    def outlined(self) -> bool:
        """Whether it was opened with its outlines."""
        return self._polygons is not None

    def outlines(self, index: int) -> Outlines:
        """The outlines of the labels, of a split that was opened with them.

        They are read each time: all of them would fill the memory of a worker.

        Raises:
            DamagedSampleError: they are damaged.
            DataError: their file is missing.
            StorageError: the file system fails.
        """
        assert self._polygons is not None
        file, size = self._polygons.file, self._polygons.bytes
        block = self._block(index)
        first, last = self._run(block.label_ptr, index - block.first)
        descriptor = self._files.get(file)
        try:
            if descriptor is None:
                descriptor = self._open(file)
            return read_outlines(descriptor, size, index, self.sample_id(index), last - first)
        except ValueError:
            raise DamagedSampleError(
                f"{self._shards / file}: sample {index} ({self.name(index)}) is damaged; copy the file again."
            ) from None
        except FileNotFoundError:
            raise DataError(f"{self._shards / file} is missing; copy it again.") from None
        except OSError as error:
            raise StorageError(f"cannot read {self._shards / file}: {error.strerror}.") from error

    def class_counts(self) -> NDArray[np.int64]:
        """(C,) boxes of each class but for crowds, which training does not learn."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        for block in self._blocks:
            boxes = block.shard.boxes
            labels = np.frombuffer(self._index.data, DATASETS["labels"], 5 * boxes, block.labels)
            crowd = np.frombuffer(self._index.data, np.uint8, boxes, block.label_flags) & CROWD
            counts += np.bincount(labels[::5][crowd == 0].astype(np.int64), minlength=len(counts))
        return counts

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the stored image, pixels."""
        width, height = _SIZE.unpack_from(self._index.data, self._row(index) + _SIZE_AT)
        return height, width

    def source_size(self, index: int) -> tuple[int, int]:
        """Height and width of the image before packing shrank it, pixels."""
        width, height = _SIZE.unpack_from(self._index.data, self._row(index) + _SOURCE_SIZE_AT)
        return height, width

    def sample_id(self, index: int) -> int:
        """Number of the sample in its split, by the order of names."""
        (number,) = _POINTER.unpack_from(self._index.data, self._row(index) + _SAMPLE_ID_AT)
        return int(number)

    def name(self, index: int) -> str:
        """Name of the source file, relative to the images' folder."""
        block = self._block(index)
        first, last = self._run(block.name_ptr, index - block.first)
        raw = self._index.data[block.names + first : block.names + last]
        return raw.decode(errors="surrogateescape")

    def describe(self, index: int) -> str:
        """Shard, record and file of a sample, for messages."""
        block = self._block(index)
        return f"{self._shards / block.shard.file}: sample {index - block.first} ({self.name(index)})"

    def shard_file(self, index: int) -> str:
        """Name of the shard that holds a sample."""
        return self._block(index).shard.file

    @property
    def boxes(self) -> int:
        """Boxes of all samples, crowds included."""
        return sum(block.shard.boxes for block in self._blocks)

    def columns(self, samples: range) -> Iterator[SampleColumns]:
        """Sizes and labels of consecutive samples, shard by shard, for what looks at all of them."""
        boxes_before = 0
        for block in self._blocks:
            first = max(samples.start - block.first, 0)
            last = min(samples.stop - block.first, block.shard.samples)
            if first < last:
                columns = columns_of(self._index.data, block.shard, block.label_ptr)
                pointers, rows = columns["label_ptr"][first : last + 1], columns["index"][first:last]
                boxes = slice(int(pointers[0]), int(pointers[-1]))
                yield SampleColumns(
                    first=block.first + first,
                    first_box=boxes_before + boxes.start,
                    heights=rows["height"],
                    widths=rows["width"],
                    boxes=np.diff(pointers),
                    labels=columns["labels"][boxes],
                    flags=columns["label_flags"][boxes],
                )
            boxes_before += block.shard.boxes

    def close(self) -> None:
        """Close the files this process opened."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _block(self, index: int) -> Block:
        """The block of the shard that holds a sample."""
        if not 0 <= index < self._samples:
            raise IndexError(f"sample {index} of {len(self)}")
        return self._blocks[bisect_right(self._firsts, index) - 1]

    def _row(self, index: int) -> int:
        """Where in the index a sample's row begins."""
        block = self._block(index)
        return block.rows + (index - block.first) * _ROW_BYTES

    def _run(self, pointers: int, row: int) -> tuple[int, int]:
        """Where a sample's labels or name begin and end, by the pointers of its shard."""
        first, last = _RUN.unpack_from(self._index.data, pointers + row * _POINTER.size)
        return first, last

    def _open(self, file: str) -> int:
        """A new descriptor of a shard; the one opened longest ago is closed when there are too many."""
        while len(self._files) >= _MOST_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        descriptor = os.open(self._shards / file, os.O_RDONLY | os.O_CLOEXEC)
        self._files[file] = descriptor
        return descriptor


class _ReusedMemory:
    """``pread`` into the memory of the call before, unless that is too small."""

    def __init__(self) -> None:
        self._memory = np.empty(_USUAL_BYTES, dtype=np.uint8).data

    def pread(self, descriptor: int, length: int, offset: int) -> memoryview:
        if len(self._memory) < length:
            self._memory = np.empty(2 * length, dtype=np.uint8).data
        wanted = self._memory[:length]
        got = os.preadv(descriptor, (wanted,), offset)
        return wanted if got == length else wanted[:got]


def _name_of_copies(info: SplitInfo, classes: int) -> str:
    """Of all that is checked, so that equal names are of what was checked for the same."""
    return xxh3_128_hexdigest(repr((info, classes)).encode())
