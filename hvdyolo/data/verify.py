"""``hvdyolo verify`` for packed data: every checksum, every count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from hvdyolo.data.manifest import Manifest, SplitInfo, read_manifest
from hvdyolo.data.polygon_file import PolygonsRecord, check_polygons, read_outlines
from hvdyolo.data.shard import Shard, read_shard
from hvdyolo.data.split_index import check_block
from hvdyolo.data.verified_file import read_verified
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
    """A file, or a sample in it, that is not what was packed."""

    file: str
    text: str


def find_problems(root: Path) -> Iterator[Problem]:
    """Everything that is wrong, shard by shard; samples are read in the order in which they lie."""
    manifest = read_manifest(root)
    for info in manifest.splits.values():
        yield from _find_in_split(root, info, len(manifest.names))


def _find_in_split(root: Path, info: SplitInfo, classes: int) -> Iterator[Problem]:
    sound = True
    for record in info.shards:
        try:
            shard = read_shard(root, record, classes)
            check_block(root, record, shard)
        except DataError as error:
            sound = False
            yield Problem(record.file, str(error))
        else:
            yield from _find_in_samples(shard, record)
    if info.polygons is not None:
        yield from _find_in_polygons(root, info, info.polygons, classes if sound else None)


def _find_in_polygons(
    root: Path, info: SplitInfo, record: PolygonsRecord, classes: int | None
) -> Iterator[Problem]:
    """``classes``: how many there are, if the shards are sound."""
    path = root / record.file
    damage = _damage(path, record)
    if damage is not None:
        yield Problem(record.file, damage)
    elif classes is not None and not _are_polygons_of(root, info, record, classes):
        yield Problem(record.file, f"{path} is not of these shards; pack the data again")


def _are_polygons_of(root: Path, info: SplitInfo, record: PolygonsRecord, classes: int) -> bool:
    """Whether each sample of some shards has its entry in a sound file, and none has more."""
    path = root / record.file
    found = place = 0
    try:
        check_polygons(path, record, info.samples)
        with open(path, "rb") as stream:
            for shard_record in info.shards:
                shard = read_shard(root, shard_record, classes)
                labels = np.diff(shard.label_ptr).tolist()
                for sample_id, count in zip(shard.sample_ids.tolist(), labels, strict=True):
                    outlines = read_outlines(stream.fileno(), record.bytes, place, sample_id, count)
                    found += sum(map(len, outlines))
                    place += 1
    except (DataError, ValueError):
        return False
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}.") from error
    return found == record.polygons


def _damage(path: Path, record: PolygonsRecord) -> str | None:
    """What is wrong with the bytes of a file beside the shards."""
    try:
        for _ in read_verified(path, record.bytes, record.digest):
            pass
    except DataError as error:
        return str(error)
    return None


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
