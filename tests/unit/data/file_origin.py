"""A file whose bytes are to be in the memory of a node; a module of its own, for processes to import."""

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from hvdyolo.data.verified_file import VerifiedFile, read_verified


@dataclass(frozen=True)
class FileOrigin:
    """Size and digest are those that it should have."""

    path: Path
    size: int
    digest: str

    @staticmethod
    def of(path: Path) -> "FileOrigin":
        """As it is now."""
        return FileOrigin(path, path.stat().st_size, xxh3_128_hexdigest(path.read_bytes()))

    def pieces(self) -> Iterator[bytes]:
        """Its bytes."""
        return read_verified(VerifiedFile(self.path, self.size, self.digest))

    def matches(self, data: bytes | mmap) -> bool:
        """Whether ``data`` are its bytes."""
        return xxh3_128_hexdigest(data) == self.digest
