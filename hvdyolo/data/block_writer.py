"""Writing a long run of bytes into a file, in large blocks, while more of it is being made."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

_BLOCK_BYTES = 8 << 20
_MOST_PIECES = 1000  # of one call; the system takes 1024


class BlockWriter:
    """Writes pieces back to back. A thread writes a block while the next is collected; no more is in memory.

    Each block is on its way to the disk while more is made, so little is left to wait for in the end.
    """

    def __init__(self, path: Path, offset: int) -> None:
        """The file must exist; the first piece will lie at ``offset``.

        Raises:
            OSError: it cannot be opened.
        """
        self._descriptor = os.open(path, os.O_WRONLY)
        self._offset = offset
        self._storage = ThreadPoolExecutor(1, "storage")
        self._writing: Future[None] | None = None
        self._block: list[memoryview] = []
        self._room = _BLOCK_BYTES

    def add(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            OSError: one before cannot be written.
        """
        rest = memoryview(piece)
        while len(rest) >= self._room or len(self._block) == _MOST_PIECES:
            self._block.append(rest[: self._room])
            rest = rest[self._room :]
            self._write()
        self._block.append(rest)
        self._room -= len(rest)

    def finish(self, offset: int, around: Iterable[tuple[int, bytes]] = ()) -> None:
        """Write the rest, and sync the file.

        Args:
            offset: of the first piece; another than announced only if there was less than a block.
            around: what else is to be in the file, and at which offsets.

        Raises:
            OSError: not all could be written.
        """
        if self._writing is None:
            self._offset = offset
        else:
            self._writing.result()
        _write_block(self._descriptor, self._block, self._offset)
        for place, piece in around:
            _write_block(self._descriptor, [memoryview(piece)], place)
        os.fsync(self._descriptor)

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._storage.shutdown()
        os.close(self._descriptor)

    def _write(self) -> None:
        if self._writing is not None:
            self._writing.result()
        size = sum(map(len, self._block))
        self._writing = self._storage.submit(_send_block, self._descriptor, self._block, self._offset)
        self._offset += size
        self._block, self._room = [], _BLOCK_BYTES


def _send_block(descriptor: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write pieces at ``offset`` and let the system begin to store them, without waiting for that.

    To say that they are not needed is how one asks for it. They stay in the cache all the same: what is still
    to be stored is not dropped. A sync every 64 MiB instead took three times as long in all.
    """
    _write_block(descriptor, pieces, offset)
    os.posix_fadvise(descriptor, offset, sum(map(len, pieces)), os.POSIX_FADV_DONTNEED)


def _write_block(descriptor: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write pieces at ``offset``, without joining them first."""
    block = list(pieces)
    while block:
        written = os.pwritev(descriptor, block, offset)
        offset += written
        while block and written >= len(block[0]):
            written -= len(block.pop(0))
        if block:
            block[0] = block[0][written:]
