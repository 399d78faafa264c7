"""Reading a file of which the manifest says size and digest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from hvdyolo.utils.errors import DataError, StorageError

_BLOCK_BYTES = 1 << 20  # stays in the cache of the processor from reading over the digest to writing


@dataclass(frozen=True)
class VerifiedFile:
    """A file that is to be read.

    Attributes:
        bytes: size it must have.
        digest: xxh3-128 it must have, hexadecimal.
    """

    path: Path
    bytes: int
    digest: str


def read_verified(file: VerifiedFile) -> Iterator[bytes]:
    """The file in blocks; only the end of them tells that they are what they should be.

    Raises:
        DataError: they are not, or there is no file.
        StorageError: the file system fails.
    """
    digest = xxhash.xxh3_128()
    try:
        with open(file.path, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != file.bytes:
                raise DataError(f"{file.path} has {size} bytes and should have {file.bytes}; copy it again.")
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                yield block
    except FileNotFoundError:
        raise DataError(f"{file.path} is missing; copy it again or pack the dataset again.") from None
    except OSError as error:
        raise StorageError(f"cannot read {file.path}: {error.strerror or error}.") from None
    if digest.hexdigest() != file.digest:
        raise DataError(f"{file.path} is damaged; copy it again or pack the dataset again.")
