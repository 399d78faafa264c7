"""Reading a file of which the manifest says size and digest."""

import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from hvdyolo.utils.errors import DataError, StorageError

_BLOCK_BYTES = 1 << 20  # stays in the cache of the processor from reading over the digest to writing


def read_verified(path: Path, size: int, digest: str) -> Iterator[bytes]:
    """The file in blocks; only the end of them tells that they are what they should be.

    Args:
        size: it must have, bytes.
        digest: xxh3-128 it must have, hexadecimal.

    Raises:
        DataError: they are not, or there is no file.
        StorageError: the file system fails.
    """
    found = xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as stream:
            length = os.fstat(stream.fileno()).st_size
            if length != size:
                raise DataError(f"{path} has {length} bytes and should have {size}; copy it again.")
            while block := stream.read(_BLOCK_BYTES):
                found.update(block)
                yield block
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy it again or pack the dataset again.") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}.") from None
    if found.hexdigest() != digest:
        raise DataError(f"{path} is damaged; copy it again or pack the dataset again.")
