"""Files that several processes try to create and whose first version stands."""

import errno
import os
import socket
import threading
from pathlib import Path

from hvdyolo.utils.files import storage_errors, sync_directory

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def create_once(path: Path, content: bytes | str) -> bool:
    """Create ``path`` whole and durable; false, leaving it alone, if it exists already.

    Raises:
        StorageError: it cannot be written.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(
        f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp"
    )
    with storage_errors(path):
        created = None
        while created is None:
            try:
                with open(temporary, "xb") as stream:
                    stream.write(raw)
                    stream.flush()
                    os.fsync(stream.fileno())
                created = _publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    return created


def remove_leftovers(directory: Path) -> None:
    """Delete what killed writers left in ``directory``."""
    for temporary in directory.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> bool | None:
    """Whether ``path`` is ours now; ``None`` if somebody took the temporary file for a leftover."""
    try:
        os.link(temporary, path)  # unlike a rename, refuses to replace
        return True
    except FileExistsError:
        return False
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        return None
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    if path.exists():
        return False
    os.rename(temporary, path)
    return True
