"""Reading the images of a shard in the order in which they lie."""

from collections.abc import Iterator

from xxhash import xxh3_64_intdigest

from hvdyolo.data.shard import Shard
from hvdyolo.utils.errors import DataError, StorageError

_BUFFER_BYTES = 8 << 20


def read_images(shard: Shard, rows: range) -> Iterator[bytes]:
    """The encoded images of neighbouring samples, each compared with its checksum.

    Raises:
        DataError: one is damaged; names shard, record and file.
        StorageError: the file system fails.
    """
    if not rows:
        return
    try:
        with open(shard.path, "rb", buffering=_BUFFER_BYTES) as stream:
            stream.seek(shard.starts.item(rows.start))
            for row in rows:
                encoded = stream.read(shard.lengths.item(row))
                if xxh3_64_intdigest(encoded) != shard.checksums.item(row):
                    raise DataError(f"{shard.describe(row)} is damaged; copy the shard again.")
                yield encoded
    except OSError as error:
        raise StorageError(f"cannot read {shard.path}: {error.strerror}.") from error
