"""Ranks that share out a piece of work and hear of each other through small files in a shared folder.

Packing needs no collectives, so it starts no MPI, and works under any launcher. What it does need is that a
rank that fails, or dies, ends the others with its message, whether or not the launcher would.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

from hvdyolo.utils.errors import (
    DataError,
    HvdyoloError,
    InternalError,
    MismatchError,
    StorageError,
    UsageError,
)

# Often in the beginning, when ranks wait for each other; rarely later, for the sake of metadata servers.
_FIRST_BEAT_SECONDS = 0.1
_FIRST_BEATS = 50
_BEAT_SECONDS = 1.0
_WAIT_SECONDS = 0.05
_FAREWELL_SECONDS = 10.0
_PRINT_SECONDS = 1.0
_CLASSES = {
    kind.exit_code: kind for kind in (UsageError, DataError, InternalError, StorageError, MismatchError)
}


class State(str, Enum):
    """What a rank is at."""

    STARTING = "starting"
    WORKING = "working"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Report:
    """What a rank says of itself.

    Attributes:
        life: tells this process from one of an earlier job in the same folder.
        beat: rises as long as the process lives.
        done: units of work.
        error, exit_code: of a failed rank.
    """

    rank: int
    host: str
    life: str
    beat: int = 0
    state: State = State.STARTING
    done: int = 0
    error: str = ""
    exit_code: int = 0


@dataclass
class _Seen:
    """The last report of another rank. It counts once it has changed: it may be an earlier job's."""

    changed: float
    report: Report | None = None
    alive: bool = False


class Team:
    """One rank's view of all; a ``with`` block is its share of the work.

    Rank 0 makes the folder and looks at all the others; these look at rank 0 only. A rank whose block fails
    tells so, and waits until rank 0, which alone speaks to the user, fails with the same error.
    """

    def __init__(self, folder: Path, rank: int, size: int, patience: float = 120.0) -> None:
        """A rank is given up after ``patience`` seconds without a sign of life."""
        self._folder = folder
        self._patience = patience
        self._report = Report(rank, socket.gethostname(), secrets.token_hex(8))
        self._others = [] if size == 1 else list(range(1, size)) if rank == 0 else [0]
        self._seen: dict[int, _Seen] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="team", daemon=True)

    def __enter__(self) -> "Team":
        if self._others:
            self._seen = {rank: _Seen(time.monotonic()) for rank in self._others}
            self._write()
            self._beating.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._others:
            return
        if isinstance(error, HvdyoloError):
            self._update(state=State.FAILED, error=str(error), exit_code=error.exit_code)
        elif error is not None:
            text = f"{type(error).__name__}: {error}"
            self._update(state=State.FAILED, error=text, exit_code=InternalError.exit_code)
        else:
            self._update(state=State.FINISHED)
        if isinstance(error, Exception) and self._report.rank != 0:
            self._bid_farewell()
        self._stop.set()
        self._beating.join()

    def begin(self) -> None:
        """Rank 0 has prepared what the others wait for."""
        self._update(state=State.WORKING)

    def add_done(self, units: int) -> None:
        """Tell that so much more of the work is done."""
        with self._lock:
            self._report = replace(self._report, done=self._report.done + units)

    @property
    def done(self) -> int:
        """Units done by all ranks, as far as rank 0 has heard."""
        reports = [seen.report for seen in self._seen.values() if seen.alive]
        return self._report.done + sum(report.done for report in reports if report is not None)

    def await_beginning(self, is_over: Callable[[], bool]) -> bool:
        """Wait for :meth:`begin` of rank 0; false if all the work was done meanwhile, without this rank.

        Raises:
            HvdyoloError: see :meth:`check`.
        """
        leader = self._seen[0]
        self.wait(
            lambda: (
                is_over()
                or (leader.alive and leader.report is not None and leader.report.state is State.WORKING)
            )
        )
        self._update(state=State.WORKING)
        return not is_over()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition``, which other ranks bring about.

        Raises:
            HvdyoloError: see :meth:`check`.
        """
        while not condition():
            self.check()
            time.sleep(_WAIT_SECONDS)

    def check(self) -> None:
        """Fail if another rank did; cheap enough to be called at every unit of work.

        Raises:
            HvdyoloError: the error another rank failed with.
            InternalError: a rank has given no sign of life.
        """
        now = time.monotonic()
        for rank, seen in self._seen.items():
            state = seen.report.state if seen.alive and seen.report is not None else None
            if state is State.FAILED and seen.report is not None:
                kind = _CLASSES.get(seen.report.exit_code, InternalError)
                told = seen.report.error
                # A bug's traceback is where it happened; the message of others stands for itself.
                raise kind(f"Rank {rank} on {seen.report.host}: {told}" if kind is InternalError else told)
            if state is not State.FINISHED and now - seen.changed > self._patience:
                host = f" on {seen.report.host}" if seen.report is not None else ""
                raise InternalError(
                    f"Rank {rank}{host} has given no sign of life for {self._patience:.0f} s; "
                    "start the same command again, it goes on where it was."
                )

    def _look(self) -> None:
        for rank, seen in self._seen.items():
            try:
                values = json.loads(self._path(rank).read_bytes())
                report = Report(**{**values, "state": State(values["state"])})
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if report != seen.report:
                seen.alive = seen.report is not None
                seen.report, seen.changed = report, time.monotonic()

    def _bid_farewell(self) -> None:
        """Stay until rank 0, which prints the error, has failed with it too, for a while."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        leader = self._seen[0]
        while time.monotonic() < deadline:
            failed = leader.report is not None and leader.report.state is State.FAILED
            if failed or time.monotonic() - leader.changed > self._patience:
                break
            time.sleep(_WAIT_SECONDS)
        time.sleep(_PRINT_SECONDS)  # the launcher ends rank 0 once this one has ended

    def _update(self, state: State, error: str = "", exit_code: int = 0) -> None:
        with self._lock:
            self._report = replace(self._report, state=state, error=error, exit_code=exit_code)
        if self._others:
            self._write()

    def _beat(self) -> None:
        while not self._stop.wait(_FIRST_BEAT_SECONDS if self._report.beat < _FIRST_BEATS else _BEAT_SECONDS):
            self._write()
            self._look()

    def _write(self) -> None:
        with self._lock:
            self._report = replace(self._report, beat=self._report.beat + 1)
            path = self._path(self._report.rank)
            temporary = path.with_suffix(".tmp")
            # The folder goes when all is done, and a full disk is noticed by the work itself.
            with suppress(OSError):
                temporary.write_text(json.dumps(asdict(self._report)))
                os.replace(temporary, path)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"
