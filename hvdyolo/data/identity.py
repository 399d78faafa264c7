"""What tells one packed dataset from another, whatever the shards it lies in."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from hvdyolo.data.format import INDEX_DTYPE
from hvdyolo.data.shard import Shard

_ROW = np.dtype(
    [
        *((name, INDEX_DTYPE[name]) for name in INDEX_DTYPE.names or () if name != "offset"),
        ("label_count", "<u8"),
        ("name_bytes", "<u8"),
    ]
)
"""What is known of a sample besides its labels and name; ``offset`` says where in a shard it lies."""


class ContentDigest:
    """The identity of a dataset, from its shards, given in their order.

    It covers the class names and, sample by sample in the order of a split, everything that a reader is told;
    the images by their checksums. Where one shard ends and the next begins does not enter.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._splits: dict[str, _SplitDigest] = {}

    def add(self, split: str, shard: Shard) -> None:
        """Take the next shard of ``split`` in."""
        self._splits.setdefault(split, _SplitDigest()).add(shard)

    def dataset_id(self, polygons: Mapping[str, str] | None = None) -> str:
        """32 hexadecimal digits; ``polygons`` are the digests of the splits' files of them, if there are."""
        splits = {name: digest.columns() for name, digest in self._splits.items()}
        for name, digest in (polygons or {}).items():
            splits[name].append(digest)
        content = json.dumps([self._names, splits], sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_128_hexdigest(content.encode())


class _SplitDigest:
    """A digest a column, so that the runs of all shards, end to end, are digested without joining them."""

    def __init__(self) -> None:
        self._rows = xxhash.xxh3_128()
        self._labels = xxhash.xxh3_128()
        self._label_flags = xxhash.xxh3_128()
        self._names = xxhash.xxh3_128()

    def add(self, shard: Shard) -> None:
        rows = np.zeros(len(shard.lengths), dtype=_ROW)
        shard.fill_rows(rows)
        rows["label_count"] = np.diff(shard.label_ptr)
        rows["name_bytes"] = np.diff(shard.name_ptr)
        self._rows.update(rows.tobytes())
        self._labels.update(shard.labels.astype("<f4").tobytes())
        self._label_flags.update(shard.label_flags.tobytes())
        self._names.update(shard.names)

    def columns(self) -> list[str]:
        return [column.hexdigest() for column in (self._rows, self._labels, self._label_flags, self._names)]
