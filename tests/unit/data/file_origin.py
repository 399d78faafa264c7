"""A file whose bytes are to be in the memory of a node; a module of its own, for processes to import."""

from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from hvdyolo.data.verified_file import read_verified


@dataclass(frozen=True)
class FileOrigin:
    """Size and digest are those that it should have; ``check`` is called when it has been copied."""

    path: Path
    size: int
    digest: str
    check: Callable[[], None] | None = None

    @staticmethod
    def of(path: Path) -> "FileOrigin":
        """As it is now."""
        return FileOrigin(path, path.stat().st_size, xxh3_128_hexdigest(path.read_bytes()))

    def copy_to(self, write: Callable[[memoryview, int], None]) -> None:
        """Its bytes, block by block."""
        place = 0
        for block in read_verified(self.path, self.size, self.digest):
            write(memoryview(block), place)
            place += len(block)
        if self.check is not None:
            self.check()

    def matches(self, data: bytes | mmap) -> bool:
        """Whether ``data`` are its bytes."""
        return xxh3_128_hexdigest(data) == self.digest
