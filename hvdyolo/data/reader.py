"""Reading samples of a packed split with ``pread``: no HDF5 in the loader's way."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.shard import Shard, read_shard
from hvdyolo.utils.errors import DataError, UsageError

_MOST_OPEN_FILES = 64


class PackedSplit:
    """Random access to all samples of a split.

    Indices are read once, when the split is opened. Files are opened when first needed, in the process
    that needs them: pickling leaves them behind, so no descriptor crosses into a worker.
    """

    def __init__(self, root: Path, split: str, *, verify: bool = True) -> None:
        """Args:
            verify: check each sample's checksum as it is read.

        Raises:
            UsageError: there is no such dataset or split.
            DataError: a shard is missing or damaged, or the split is empty.
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
        self._shards = [read_shard(root, record, len(manifest.names)) for record in info.shards]
        self._firsts = np.cumsum([0] + [len(shard.index) for shard in self._shards])
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def read(self, index: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            DataError: its checksum differs or the file ends early; names shard and sample.
        """
        number, shard, row = self._locate(index)
        entry = shard.index[row]
        length = int(entry["length"])
        encoded = os.pread(self._descriptor(number), length, shard.data_offset + int(entry["offset"]))
        if self._verify and xxhash.xxh3_64_intdigest(encoded) != int(entry["checksum"]):
            raise DataError(
                f"{shard.path}: sample {row} ({self.name(index)}) is damaged; copy the shard again."
            )
        return encoded

    def labels(self, index: int) -> NDArray[np.float32]:
        """(n, 5) class, cx, cy, w, h in 0..1 of the image."""
        _, shard, row = self._locate(index)
        return shard.labels[shard.label_ptr[row] : shard.label_ptr[row + 1]]

    def flags(self, index: int) -> NDArray[np.uint8]:
        """(n,) bits: 1 crowd, 2 difficult, 4 truncated (:mod:`hvdyolo.data.format`)."""
        _, shard, row = self._locate(index)
        return shard.label_flags[shard.label_ptr[row] : shard.label_ptr[row + 1]]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the stored image, pixels."""
        _, shard, row = self._locate(index)
        return int(shard.index[row]["height"]), int(shard.index[row]["width"])

    def source_size(self, index: int) -> tuple[int, int]:
        """Height and width of the image before packing shrank it, pixels."""
        _, shard, row = self._locate(index)
        return int(shard.index[row]["source_height"]), int(shard.index[row]["source_width"])

    def sample_id(self, index: int) -> int:
        """Number of the sample in its split, by the order of names."""
        _, shard, row = self._locate(index)
        return int(shard.index[row]["sample_id"])

    def name(self, index: int) -> str:
        """Name of the source file, relative to the images' folder."""
        _, shard, row = self._locate(index)
        return shard.names[shard.name_ptr[row] : shard.name_ptr[row + 1]].decode(errors="replace")

    def close(self) -> None:
        """Close the files this process opened."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _locate(self, index: int) -> tuple[int, Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return number, self._shards[number], index - int(self._firsts[number])

    def _descriptor(self, number: int) -> int:
        """A descriptor of a shard; the one used longest ago is closed when there are too many."""
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        while len(self._files) >= _MOST_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        path = self._shards[number].path
        try:
            self._files[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        return self._files[number]
