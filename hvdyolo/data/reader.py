"""Reading samples of a packed split with ``pread``: no HDF5 in the loader's way."""

import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.shard import read_shard
from hvdyolo.utils.errors import DataError, StorageError, UsageError

_MOST_OPEN_FILES = 64


class DamagedSampleError(DataError):
    """One sample is not what was packed; the others may still be."""


class PackedSplit:
    """Random access to all samples of a split.

    Indices are read once, when the split is opened. Files are opened when first needed, in the process
    that needs them: pickling and copying leave them behind, so no descriptor crosses into a worker. Threads
    need a copy each. Arrays that are handed out are read-only.
    """

    def __init__(self, root: Path, split: str, *, verify: bool = True, shards: Path | None = None) -> None:
        """Args:
            verify: check each sample's checksum as it is read.
            shards: directory of the split's shards, if they are not read from ``root``.

        Raises:
            UsageError: there is no such dataset or split.
            DataError: a shard is missing or damaged, or the split is empty.
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
        self._verify = verify
        self._shards = [read_shard(shards or root, record, len(manifest.names)) for record in info.shards]
        self._firsts = list(accumulate((len(shard.lengths) for shard in self._shards), initial=0))
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return self._firsts[-1]

    def read(self, index: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            DamagedSampleError: its checksum differs or the file ends early; names shard, record and file.
            DataError: the shard is missing.
            StorageError: the file system fails.
        """
        # Runs once a sample, and its own time is to stay small beside the 10 microseconds of the pread.
        number, row = self._locate(index)
        shard = self._shards[number]
        length = shard.lengths.item(row)
        descriptor = self._files.get(number)
        try:
            if descriptor is None:
                descriptor = self._open(number)
            encoded = os.pread(descriptor, length, shard.starts.item(row))
        except FileNotFoundError:
            raise DataError(f"{shard.path} is missing; copy it again.") from None
        except OSError as error:
            raise StorageError(f"cannot read {shard.path}: {error.strerror}.") from error
        if len(encoded) != length or (
            self._verify and xxh3_64_intdigest(encoded) != shard.checksums.item(row)
        ):
            raise DamagedSampleError(f"{shard.describe(row)} is damaged; copy the shard again.")
        return encoded

    def labels(self, index: int) -> NDArray[np.float32]:
        """(n, 5) class, cx, cy, w, h in 0..1 of the image."""
        number, row = self._locate(index)
        shard = self._shards[number]
        return shard.labels[shard.label_ptr.item(row) : shard.label_ptr.item(row + 1)]

    def flags(self, index: int) -> NDArray[np.uint8]:
        """(n,) bits: 1 crowd, 2 difficult, 4 truncated (:mod:`hvdyolo.data.format`)."""
        number, row = self._locate(index)
        shard = self._shards[number]
        return shard.label_flags[shard.label_ptr.item(row) : shard.label_ptr.item(row + 1)]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the stored image, pixels."""
        number, row = self._locate(index)
        sizes = self._shards[number].sizes
        return sizes.item(row, 0), sizes.item(row, 1)

    def source_size(self, index: int) -> tuple[int, int]:
        """Height and width of the image before packing shrank it, pixels."""
        number, row = self._locate(index)
        sizes = self._shards[number].source_sizes
        return sizes.item(row, 0), sizes.item(row, 1)

    def sample_id(self, index: int) -> int:
        """Number of the sample in its split, by the order of names."""
        number, row = self._locate(index)
        return self._shards[number].sample_ids.item(row)

    def name(self, index: int) -> str:
        """Name of the source file, relative to the images' folder."""
        number, row = self._locate(index)
        return self._shards[number].name(row)

    def describe(self, index: int) -> str:
        """Shard, record and file of a sample, for messages."""
        number, row = self._locate(index)
        return self._shards[number].describe(row)

    def shard_file(self, index: int) -> str:
        """Name of the shard that holds a sample."""
        number, _ = self._locate(index)
        return self._shards[number].path.name

    def close(self) -> None:
        """Close the files this process opened."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the shard and row in it."""
        if not 0 <= index < self._firsts[-1]:
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._firsts, index) - 1
        return number, index - self._firsts[number]

    def _open(self, number: int) -> int:
        """A new descriptor of a shard; the one opened longest ago is closed when there are too many."""
        while len(self._files) >= _MOST_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        descriptor = os.open(self._shards[number].path, os.O_RDONLY | os.O_CLOEXEC)
        self._files[number] = descriptor
        return descriptor
