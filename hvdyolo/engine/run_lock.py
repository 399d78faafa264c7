"""The lock of a run directory: one job at a time.

``lock`` is created with O_EXCL by one process and holds who that is, and a counter that a thread of the
holder raises. A holder on this host, or of an earlier attempt at this SLURM job, is judged at once. Any other
is dead when its counter has stood still for a set time.

A dead holder's lock must go to one of those who want it, and between reading it and removing it anything may
happen. So each dead holder has one successor: whoever creates the file named after it. The successor puts its
own lock in place of the dead one's, and is followed like any holder if it dies before that.
"""

import hashlib
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
            line = _line(path)
            if not line:
                if path.exists():
                    raise MismatchError(
                        f"{path} is not a lock of this program; remove it if no job runs here."
                    )
                continue  # released this very moment
            last = line[-1]
            if not last.is_known_dead(holder) and not _stands_still(path, line, expiry):
                raise MismatchError(
                    f"{directory} is in use by process {last.process.pid} on {last.process.host}"
                    f"{f', SLURM job {last.job}' if last.job else ''}, "
                    f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(last.since))}; "
                    "wait for it, or give another directory."
                )
            if _succeed(path, line, holder):
                break
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


def _successor_of(path: Path, holder: Holder) -> Path:
    """The file whose creator takes over from ``holder``."""
    identity = json.dumps([asdict(holder.process), holder.since])
    return path.with_name(f".{path.name}.after.{hashlib.sha256(identity.encode()).hexdigest()[:16]}")


def _line(path: Path) -> list[Holder]:
    """The holder in ``path``, its successor if it has one, and so on: the last one holds the lock."""
    line: list[Holder] = []
    found = _read(path)
    while found is not None:
        line.append(found)
        found = _read(_successor_of(path, found))
    return line


def _stands_still(path: Path, line: list[Holder], expiry: float) -> bool:
    """Watch the last of ``line``, a holder elsewhere, for ``expiry`` seconds."""
    if line[-1].process.machine == ProcessIdentity.current().machine:
        return False  # it lives: the machine would know if not
    deadline = time.monotonic() + expiry
    while time.monotonic() < deadline:
        time.sleep(min(1.0, expiry / 10))
        if _line(path) != line:
            return False
    return True


def _succeed(path: Path, line: list[Holder], holder: Holder) -> bool:
    """Take over from the last of ``line``, who is dead; false if things have changed since it was read."""
    claim = _successor_of(path, line[-1])
    if not create_once(claim, json.dumps(asdict(holder))):
        return False
    if _line(path) != [*line, holder]:
        claim.unlink(missing_ok=True)  # of a holder whom another has already followed, or who lives after all
        return False
    write_json(path, asdict(holder))
    # Only now: who finds no successor of a holder must find another lock in place of the holder's.
    for dead in line:
        _successor_of(path, dead).unlink(missing_ok=True)
    return True
