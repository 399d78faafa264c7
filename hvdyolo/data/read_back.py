"""Reading freshly written shards as a reader would: what gives a dataset its identity and its index files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvdyolo.data.format import index_name
from hvdyolo.data.identity import ContentDigest
from hvdyolo.data.index_file import IndexRecord, IndexWriter
from hvdyolo.data.polygon_file import PolygonsRecord
from hvdyolo.data.shard import read_shard
from hvdyolo.data.writer import ShardRecord


@dataclass(frozen=True)
class ReadBack:
    """What the manifest needs to know besides the shards.

    Attributes:
        indexes: of each split.
    """

    dataset_id: str
    indexes: Mapping[str, IndexRecord]


def read_back(
    root: Path,
    scratch: Path,
    names: Sequence[str],
    shards: Mapping[str, Sequence[ShardRecord]],
    polygons: Mapping[str, PolygonsRecord] | None = None,
) -> ReadBack:
    """Check the shards of each split in ``root``, and write the index files there, by way of ``scratch``.

    The files of ``polygons`` were compared with their digests as they were put together.

    Raises:
        DataError: a shard is damaged already.
        StorageError: the file system fails.
    """
    content = ContentDigest(names)
    indexes = {}
    for split, records in shards.items():
        with IndexWriter(root / index_name(split), scratch) as index:
            for record in records:
                shard = read_shard(root, record, len(names))
                content.add(split, shard)
                index.add(shard)
        assert index.record is not None
        indexes[split] = index.record
    digests = {split: record.digest for split, record in (polygons or {}).items()}
    return ReadBack(content.dataset_id(digests), indexes)
