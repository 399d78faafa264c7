"""Bytes that all processes of a node read: if they are many, they are in the node's memory once.

The first process that needs them reads them into a file in the memory of the node, the others wait and map
this copy. Whoever makes one holds a lock that the kernel gives up with the process, and a copy has its name
only when it is whole: where the maker is killed, the next process starts over. The copies of a user lie in a
folder that nobody else can write to. They stay for the next job, until another is made and no process has
them mapped any longer.

A copy is compared with digests by every process that finds it. A process that waited while it was made, or
is handed the bytes by another, as a loader worker is by its rank, maps what that one has compared.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import Any, Protocol

_SHARED_FROM = 16 << 20  # bytes; what is smaller may be in every process, and leaves nothing behind

Bytes = bytes | mmap
"""In the process itself, or mapped."""
Write = Callable[[memoryview, int], None]
"""Takes a piece and its place; may be called by several threads at once."""


class Origin(Protocol):
    """Where the bytes come from; picklable.

    Attributes:
        size: how many bytes they are.
    """

    size: int

    def copy_to(self, write: Write) -> None:
        """Hand all bytes to ``write``, and see that they are what they should be."""
        ...

    def matches(self, data: Bytes) -> bool:
        """Whether these, as many, are the same."""
        ...


class NodeMemory:
    """Bytes of an origin, verified.

    Pickling takes small ones along, and of large ones where they are to be mapped.

    Attributes:
        data: the bytes; not to be closed.
        copy: what they are mapped from, if they are.
    """

    data: Bytes

    def __init__(self, origin: Origin, name: str) -> None:
        """Args:
            name: of copies; tells the bytes, and what ``origin`` checks them for, from all others.

        Raises:
            HvdyoloError: of ``origin``.
        """
        self._origin = origin
        self._name = name
        self._seen: _Seen | None = None
        self._open()

    @property
    def copy(self) -> Path | None:
        return None if self._seen is None else self._seen.path

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self._seen is None else {**self.__dict__, "data": b""}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._seen is not None:
            again = _map(self._seen.path, self._origin, self._seen)
            if again is None:  # removed meanwhile
                self._open()
            else:
                self.data = again.data

    def _open(self) -> None:
        for place in _places() if self._origin.size >= _SHARED_FROM else ():
            mapped = _map_in(place, self._origin, self._name)
            if mapped is not None:
                self.data, self._seen = mapped.data, mapped.seen
                return
        buffer = bytearray(self._origin.size)

        def write(piece: memoryview, place: int) -> None:
            buffer[place : place + len(piece)] = piece

        self._origin.copy_to(write)
        self.data, self._seen = bytes(buffer), None


@dataclass(frozen=True)
class _Seen:
    """A copy, and what tells whether it is still the one that was compared with the digest."""

    path: Path
    device: int
    inode: int
    modified: int


@dataclass(frozen=True)
class _Mapped:
    data: mmap
    seen: _Seen


def _places() -> Sequence[Path]:
    """Folders on the node where a copy may be, best first."""
    return Path("/dev/shm"), Path(tempfile.gettempdir())


def _map_in(place: Path, origin: Origin, name: str) -> _Mapped | None:
    """Map the copy in ``place``, and make it if need be; ``None``: ``place`` takes none."""
    try:
        path = _private_folder(place) / name
        before = _look(path)
        mapped = _map(path, origin)
        if mapped is not None:
            return mapped
        with _locked(path.parent):
            # Others may have waited for the same; whoever was first has put another file there.
            made = _look(path)
            if made == before:
                return _make(path, origin)
        return _map(path, origin, made)
    except OSError:
        return None  # it is full, cannot be written to, has no locks, or is somebody else's


def _private_folder(place: Path) -> Path:
    """The user's own folder in a place where everybody may write."""
    folder = place / f"hvdyolo-index-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not _is_private(status, stat.S_IFDIR):
        raise PermissionError(folder)
    return folder


def _is_private(status: os.stat_result, kind: int) -> bool:
    """Whether a file of a kind is this user's, and of no use to anybody else."""
    mine = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return mine and stat.S_IFMT(status.st_mode) == kind


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _look(path: Path) -> _Seen | None:
    """What is there."""
    try:
        return _seen(path, path.lstat())
    except FileNotFoundError:
        return None


def _seen(path: Path, status: os.stat_result) -> _Seen:
    return _Seen(path, status.st_dev, status.st_ino, status.st_mtime_ns)


def _map(path: Path, origin: Origin, seen: _Seen | None = None) -> _Mapped | None:
    """Map a copy that is this user's, and ``seen`` or what it should be; ``None`` if there is none."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as copy:
            status = os.fstat(copy.fileno())
            if not _is_private(status, stat.S_IFREG) or status.st_size != origin.size:
                return None
            # The lock of who uses it; the map keeps the open file, and so the lock, until it ends.
            fcntl.flock(copy, fcntl.LOCK_SH)
            data = mmap(copy.fileno(), origin.size, MAP_SHARED, PROT_READ)
    except OSError:
        return None
    found = _seen(path, status)
    if found != seen and not origin.matches(data):
        return None
    return _Mapped(data, found)


def _make(path: Path, origin: Origin) -> _Mapped | None:
    """Make and map a copy, in place of those that nobody uses; ``None`` if it does not fit."""
    _remove_unused(path.parent)
    if shutil.disk_usage(path.parent).free < origin.size:
        return None
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as copy:
            fcntl.flock(copy, fcntl.LOCK_SH)
            os.truncate(descriptor, origin.size)
            # By writing: mapped memory would be cleared first, found page by page, and kill the process
            # (SIGBUS) where there is no room.
            origin.copy_to(partial(_write, descriptor))
            data = mmap(descriptor, origin.size, MAP_SHARED, PROT_READ)
            seen = _seen(path, os.fstat(descriptor))
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return _Mapped(data, seen)


def _write(descriptor: int, piece: memoryview, place: int) -> None:
    while piece:
        written = os.pwrite(descriptor, piece, place)
        piece = piece[written:]
        place += written


def _remove_unused(folder: Path) -> None:
    """Remove the copies, whole or not, that no process has open."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
