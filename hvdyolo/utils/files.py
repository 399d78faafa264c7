"""Files that are either whole and durable, or absent."""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hvdyolo.utils.errors import StorageError


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable: a rename survives a crash only after this."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content``: a reader, or a crash, sees the old file or the new one.

    Raises:
        StorageError: the file cannot be written.
    """
    raw = content.encode() if isinstance(content, str) else content
    # Not tempfile: its files are private to the user, and results are for the user's group too.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with storage_errors(path):
        try:
            with open(temporary, "xb") as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_atomically`` of ``value`` as indented JSON with a final newline."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def make_directory(path: Path) -> Path:
    """Create ``path`` and its parents, and check that files can be made in it.

    Raises:
        StorageError: it cannot be created or written to.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        # os.access is wrong on file systems with root squashing; only trying tells.
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` raised inside into a :class:`StorageError` that names ``path``."""
    try:
        yield
    except OSError as error:
        # HDF5 tells the number, and a text of several lines.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"cannot write {path}: {reason} ({_free_space(path)}).") from error


def _free_space(path: Path) -> str:
    for directory in (path, *path.parents):
        try:
            return f"{shutil.disk_usage(directory).free:,} bytes free"
        except OSError:
            continue
    return "free space unknown"
