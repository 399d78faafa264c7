"""``hvdyolo verify`` for packed data: every checksum, every count."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_intdigest

from hvdyolo.data.manifest import Manifest, read_manifest
from hvdyolo.data.shard import Shard, read_shard
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, StorageError

_MOST_TOLD = 5


@dataclass(frozen=True)
class Verified:
    """What was read and found as it should be."""

    splits: int
    samples: int
    bytes: int


def verify_packed(root: Path) -> Verified:
    """Read everything in a packed dataset.

    Raises:
        DataError: something is damaged; names the shards to copy again.
        HvdyoloError: the manifest itself cannot be used, or the file system fails.
    """
    manifest = read_manifest(root)
    problems = list(find_problems(root))
    if problems:
        shards = sorted({problem.shard for problem in problems})
        told = "; ".join(problem.text for problem in problems[:_MOST_TOLD])
        more = f"; and {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
        raise DataError(
            f"{root} is damaged in {len(shards)} of {_count_shards(manifest)} shards ({', '.join(shards)}): "
            f"{told}{more}"
        )
    return Verified(
        splits=len(manifest.splits),
        samples=sum(info.samples for info in manifest.splits.values()),
        bytes=sum(record.data_bytes for info in manifest.splits.values() for record in info.shards),
    )


@dataclass(frozen=True)
class Problem:
    """A shard, or a sample in it, that is not what was packed."""

    shard: str
    text: str


def find_problems(root: Path) -> Iterator[Problem]:
    """Everything that is wrong, shard by shard; samples are read in the order in which they lie."""
    manifest = read_manifest(root)
    for info in manifest.splits.values():
        for record in info.shards:
            try:
                shard = read_shard(root, record, len(manifest.names))
            except DataError as error:
                yield Problem(record.file, str(error))
            else:
                yield from _find_in_samples(shard, record)


def _find_in_samples(shard: Shard, record: ShardRecord) -> Iterator[Problem]:
    try:
        with open(shard.path, "rb") as stream:
            stream.seek(record.data_offset)
            for row, (length, checksum) in enumerate(
                zip(shard.lengths.tolist(), shard.checksums.tolist(), strict=True)
            ):
                if xxh3_64_intdigest(stream.read(length)) != checksum:
                    yield Problem(record.file, f"{shard.describe(row)} is damaged")
    except OSError as error:
        raise StorageError(f"cannot read {shard.path}: {error.strerror}.") from error


def _count_shards(manifest: Manifest) -> int:
    return sum(len(info.shards) for info in manifest.splits.values())
