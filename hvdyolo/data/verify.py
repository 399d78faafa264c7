"""``hvdyolo verify`` for packed data: every checksum, every count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
from xxhash import xxh3_64_intdigest

from hvdyolo.data.index_file import block_of
from hvdyolo.data.manifest import Manifest, SplitInfo, read_manifest
from hvdyolo.data.node_file import Origin, read_verified
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
        DataError: something is damaged; names the files to copy again.
        HvdyoloError: the manifest itself cannot be used, or the file system fails.
    """
    manifest = read_manifest(root)
    problems = list(find_problems(root))
    if problems:
        told = "; ".join(problem.text for problem in problems[:_MOST_TOLD])
        more = f"; and {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
        raise DataError(f"{root} is damaged in {_where(problems, manifest)}: {told}{more}")
    return Verified(
        splits=len(manifest.splits),
        samples=sum(info.samples for info in manifest.splits.values()),
        bytes=sum(record.data_bytes for info in manifest.splits.values() for record in info.shards),
    )


@dataclass(frozen=True)
class Problem:
    """A shard or index file, or a sample in it, that is not what was packed."""

    file: str
    text: str


def find_problems(root: Path) -> Iterator[Problem]:
    """Everything that is wrong, shard by shard; samples are read in the order in which they lie."""
    manifest = read_manifest(root)
    for info in manifest.splits.values():
        yield from _find_in_split(root, info, len(manifest.names))


def _find_in_split(root: Path, info: SplitInfo, classes: int) -> Iterator[Problem]:
    blocks = xxhash.xxh3_128()
    sound = True
    for record in info.shards:
        try:
            shard = read_shard(root, record, classes)
        except DataError as error:
            sound = False
            yield Problem(record.file, str(error))
        else:
            blocks.update(block_of(shard))
            yield from _find_in_samples(shard, record)
    if info.index is None:
        return
    path = root / info.index.file
    try:
        for _ in read_verified(Origin(path, info.index.bytes, info.index.digest)):
            pass
    except DataError as error:
        yield Problem(info.index.file, str(error))
    else:
        if sound and blocks.hexdigest() != info.index.digest:
            yield Problem(info.index.file, f"{path} is not the index of these shards; pack the data again")


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


def _where(problems: Sequence[Problem], manifest: Manifest) -> str:
    """The damaged files, in words."""
    files = sorted({problem.file for problem in problems})
    shards = {record.file for info in manifest.splits.values() for record in info.shards}
    damaged = [file for file in files if file in shards]
    where = [f"{len(damaged)} of {len(shards)} shards ({', '.join(damaged)})"] if damaged else []
    return " and ".join([*where, *(file for file in files if file not in shards)])
