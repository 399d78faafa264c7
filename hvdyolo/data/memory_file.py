"""A file in memory for HDF5 to write.

HDF5 does not get over a write that fails: what it cannot flush it tries to flush again whenever an object is
let go, prints tracebacks of that, and its errors are not always an ``OSError``. So it never writes to a disk.
"""

import io
from collections.abc import Iterator
from typing import Any


class MemoryFile(io.RawIOBase):
    """Keeps each write as it came: a large hole takes no room. For few writes, which reads look through.

    Attributes:
        size: of the file, bytes.
    """

    def __init__(self) -> None:
        self._writes: list[tuple[int, bytes]] = []
        self._place = 0
        self.size = 0

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """What was written where; later ones replace earlier ones."""
        return iter(self._writes)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To ``offset`` from the beginning, the place that was sought, or the end."""
        self._place = offset + (0, self._place, self.size)[whence]
        return self._place

    def write(self, data: Any) -> int:
        """Write at the place sought."""
        piece = bytes(data)
        self._writes.append((self._place, piece))
        self._place += len(piece)
        self.size = max(self.size, self._place)
        return len(piece)

    def readinto(self, buffer: Any) -> int:
        """Read at the place sought; what was not written is zero."""
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        for start, piece in self._writes:
            first = max(start, self._place)
            last = min(start + len(piece), self._place + len(view))
            if first < last:
                view[first - self._place : last - self._place] = piece[first - start : last - start]
        self._place += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, by default to the place that was sought."""
        self.size = self._place if size is None else size
        self._writes = [(at, piece[: self.size - at]) for at, piece in self._writes if at < self.size]
        return self.size
