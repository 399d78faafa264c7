"""The lock of a run directory: one job at a time.

``lock`` is created with O_EXCL by one process and holds who that is, and a counter that a thread of the
holder raises. A holder on this host, or of an earlier attempt at this SLURM job, is judged at once. Any other
is dead when its counter has stood still for a set time.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hvdyolo.utils.create_once import create_once
from hvdyolo.utils.errors import MismatchError
from hvdyolo.utils.files import write_json
from hvdyolo.utils.process_identity import ProcessIdentity

_NAME = "lock"
_BEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Holder:
    """Who holds the lock.

    Attributes:
        job: SLURM job, or empty.
        restarts: how often SLURM restarted that job.
        since: seconds since 1970.
        beats: the counter.
    """

    process: ProcessIdentity
    job: str
    restarts: int
    since: float
    beats: int

    @classmethod
    def current(cls) -> "Holder":
        """This process."""
        return cls(
            process=ProcessIdentity.current(),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            since=time.time(),
            beats=0,
        )

    def is_known_dead(self, other: "Holder") -> bool:
        """Whether ``other`` (this process) can tell at once that this holder has ended."""
        if self.process.is_known_dead():
            return True
        # SLURM starts a job again only when its last attempt is gone from all nodes.
        return bool(self.job) and self.job == other.job and self.restarts < other.restarts


class RunLock:
    """A held lock."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path = path
        self._holder = holder
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, directory: Path, expiry: float) -> "RunLock":
        """Take the lock of ``directory``.

        Args:
            expiry: seconds for which the counter of a holder elsewhere must stand still.

        Raises:
            MismatchError: another job holds it; names the holder.
        """
        path = directory / _NAME
        holder = Holder.current()
        while not create_once(path, json.dumps(asdict(holder))):
            found = _read(path)
            if found is None:
                if path.exists():
                    raise MismatchError(
                        f"{path} is not a lock of this program; remove it if no job runs here."
                    )
                continue  # released this very moment
            if not found.is_known_dead(holder) and not _stands_still(path, found, expiry):
                raise MismatchError(
                    f"{directory} is in use by process {found.process.pid} on {found.process.host}"
                    f"{f', SLURM job {found.job}' if found.job else ''}, "
                    f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(found.since))}; "
                    "wait for it, or give another directory."
                )
            _break(path, found)
        return cls(path, holder)

    def release(self) -> None:
        """Give it back."""
        self._released.set()
        self._thread.join()
        found = _read(self._path)
        if found is not None and found.process == self._holder.process:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        beats = 0
        while not self._released.wait(_BEAT_SECONDS):
            beats += 1
            found = _read(self._path)
            if found is None or found.process != self._holder.process:
                return  # broken by someone who took this process for dead
            write_json(self._path, asdict(self._holder) | {"beats": beats})


def _read(path: Path) -> Holder | None:
    try:
        values = json.loads(path.read_text())
        return Holder(**{**values, "process": ProcessIdentity(**values["process"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stands_still(path: Path, found: Holder, expiry: float) -> bool:
    """Watch the counter of a holder elsewhere for ``expiry`` seconds."""
    if found.process.machine == ProcessIdentity.current().machine:
        return False  # it lives: the machine would know if not
    deadline = time.monotonic() + expiry
    while time.monotonic() < deadline:
        time.sleep(min(1.0, expiry / 10))
        if _read(path) != found:
            return False
    return True


def _break(path: Path, dead: Holder) -> None:
    """Remove the lock of ``dead``, and no other: someone else may have broken and taken it meanwhile."""
    aside = path.with_name(f".lock.broken.{os.getpid()}.{threading.get_ident()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    moved = _read(aside)
    if moved is not None and moved.process != dead.process:
        os.link(aside, path)  # a living holder's: put it back
    aside.unlink()
