"""Reading freshly written shards as readers would: what gives a dataset its identity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hvdyolo.data.identity import ContentDigest
from hvdyolo.data.polygon_file import PolygonsRecord
from hvdyolo.data.shard import read_shard
from hvdyolo.data.split_index import check_block
from hvdyolo.data.writer import ShardRecord


def read_back(
    root: Path,
    names: Sequence[str],
    shards: Mapping[str, Sequence[ShardRecord]],
    polygons: Mapping[str, PolygonsRecord] | None = None,
) -> str:
    """Check the shards of each split in ``root``, and return the ``dataset_id``.

    The files of ``polygons`` were compared with their digests as they were put together.

    Raises:
        DataError: a shard is damaged already.
        StorageError: the file system fails.
    """
    content = ContentDigest(names)
    for split, records in shards.items():
        for record in records:
            shard = read_shard(root, record, len(names))
            check_block(root, record, shard)
            content.add(split, shard)
    return content.dataset_id({split: record.digest for split, record in (polygons or {}).items()})
