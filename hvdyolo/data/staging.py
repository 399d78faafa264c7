"""Copies of shards on storage of the node, such as ``/dev/shm`` or NVMe, made once a node.

The ranks of a node share the shards out: each takes those that no other is copying, then waits for the rest.
A copy is written under a temporary name and renamed, so it is complete or absent; it stays for the next job.
Who writes holds a lock on the temporary file, which the kernel gives up with the process: where a copier
dies, however, the next rank starts that shard over, and there is nothing to time out.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

from hvdyolo.data.manifest import Manifest, polygons_of, read_manifest
from hvdyolo.data.polygon_file import PolygonsRecord
from hvdyolo.data.sequential import read_images
from hvdyolo.data.shard import read_shard
from hvdyolo.data.verified_file import read_verified
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, StorageError
from hvdyolo.utils.files import make_directory, storage_errors, sync_directory

_BLOCK_BYTES = 8 << 20
_WAIT_SECONDS = 0.1

StagedRecord = ShardRecord | PolygonsRecord
"""What the manifest says about a file that is copied."""

Beat = Callable[[], None]
"""Called whenever a copy has grown, by this process or by one that is waited for."""


def local_shards(
    root: Path, splits: Sequence[str], stage: str | None, beat: Beat, outlined: Sequence[str] = ()
) -> Path:
    """Where to read the shards of ``splits`` and the polygons of ``outlined``: in ``root``, or staged."""
    return root if stage is None else stage_shards(root, splits, Path(stage), beat, outlined)


def stage_shards(
    root: Path, splits: Sequence[str], stage: Path, beat: Beat, outlined: Sequence[str] = ()
) -> Path:
    """The directory in ``stage`` with copies of all shards of ``splits``; missing ones are made now.

    With them are the files of polygons of the splits ``outlined``. Every byte is verified while it is copied:
    images by their checksums, all else by digests.

    Raises:
        UsageError: one of ``outlined`` has no polygons.
        DataError: a file in ``root`` is missing or damaged.
        StorageError: the copies do not fit, which is told before any is begun, or the file system fails.
    """
    manifest = read_manifest(root)
    records: list[StagedRecord] = [record for split in splits for record in manifest.splits[split].shards]
    records += [polygons_of(manifest, split, root) for split in outlined]
    target = make_directory(stage / _directory_name(manifest))
    missing = [record for record in records if not (target / record.file).exists()]
    _check_space(target, missing)
    grown = 0
    while missing:
        copied = [record for record in missing if _try_to_stage(root, record, manifest, target, beat)]
        missing = [record for record in missing if record not in copied]
        size = sum(_present_bytes(target, record) for record in missing)
        if copied or size != grown:
            grown = size
            beat()
        if not copied:
            time.sleep(_WAIT_SECONDS)
    return target


def _directory_name(manifest: Manifest) -> str:
    """Equal content in other shards has the same ``dataset_id``, and files of the same names."""
    layout = xxhash.xxh3_64()
    for info in manifest.splits.values():
        for record in info.shards:
            layout.update(record.digest.encode())
    return f"hvdyolo-{manifest.dataset_id}-{layout.hexdigest()}"


def _check_space(target: Path, missing: Sequence[StagedRecord]) -> None:
    # In this order: what another rank copies in between counts as there, and not as taken.
    free = shutil.disk_usage(target).free
    needed = sum(record.bytes - _present_bytes(target, record) for record in missing)
    if needed > free:
        raise StorageError(
            f"{target} needs {needed:,} bytes and {free:,} bytes are free; remove older copies (hvdyolo-*) "
            "beside it, or give another loader.stage or none."
        )


def _present_bytes(target: Path, record: StagedRecord) -> int:
    """How much of a file's copy takes up space already."""
    for path in (_temporary(target, record), target / record.file):
        try:
            return min(path.stat().st_blocks * 512, record.bytes)
        except FileNotFoundError:
            continue
    return 0


def _temporary(target: Path, record: StagedRecord) -> Path:
    return target / f".{record.file}.tmp"


def _try_to_stage(root: Path, record: StagedRecord, manifest: Manifest, target: Path, beat: Beat) -> bool:
    """Copy a file unless another process does; whether the copy is there now."""
    path, temporary = target / record.file, _temporary(target, record)
    if path.exists():
        return True
    with storage_errors(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not _is_same(temporary, descriptor):
                return path.exists()  # the last holder has renamed it, or failed and removed it
            if path.exists():
                temporary.unlink()  # made anew after the rename
                return True
            try:
                _copy(root, record, len(manifest.names), descriptor, beat)
                os.fsync(descriptor)
                os.rename(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_directory(target)
            return True
        finally:
            os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still names the open file: it is renamed or removed by the holder of its lock only."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _copy(root: Path, record: StagedRecord, classes: int, descriptor: int, beat: Beat) -> None:
    if isinstance(record, ShardRecord):
        _copy_shard(root, record, classes, descriptor, beat)
        return
    with open(descriptor, "wb", buffering=_BLOCK_BYTES, closefd=False) as copy:
        for block in read_verified(root / record.file, record.bytes, record.digest):
            copy.write(block)
            beat()


def _copy_shard(root: Path, record: ShardRecord, classes: int, descriptor: int, beat: Beat) -> None:
    shard = read_shard(root, record, classes)
    digest = xxhash.xxh3_128()
    with open(descriptor, "wb", buffering=_BLOCK_BYTES, closefd=False) as copy:
        for block in _read_span(shard.path, 0, record.data_offset):
            digest.update(block)
            copy.write(block)
        for encoded in read_images(shard, range(record.samples)):
            copy.write(encoded)
            beat()
        for block in _read_span(shard.path, record.data_offset + record.data_bytes, record.bytes):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != record.digest:
        raise DataError(f"{shard.path} has changed while it was copied; start again.")


def _read_span(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Bytes ``start`` to ``stop`` of a file, in blocks."""
    try:
        with open(path, "rb") as stream:
            stream.seek(start)
            while block := stream.read(min(_BLOCK_BYTES, stop - stream.tell())):
                yield block
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}.") from error
