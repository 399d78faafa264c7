"""Ending a job that stands still, and naming the rank that holds it up.

Neither MPI nor Gloo does this reliably: a stopped or stuck rank leaves the others waiting for ever. Each rank
beats a :class:`Beacon`, a small shared mapping; a process beside each rank watches it, which works
however the rank is stuck, and publishes it in the run directory. When a beacon stands still for too long,
all ranks soon do, because they wait for each other; the one that does not wait is the cause. The watchdogs
have the ranks dump their stacks, write ``outcome.json`` and end their ranks.

The process imports the standard library alone, has its own standard streams, knows nothing of MPI, and ends
with its parent.
"""

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from hvdyolo.distributed.world import World
from hvdyolo.utils.files import write_json
from hvdyolo.utils.outcome import Outcome, Reason, write_outcome
from hvdyolo.utils.processes import environment_without_launcher

_BEACON = struct.Struct("<dq?48s")  # time of the last beat, step, whether it waits for others, phase
_PUBLISH_SECONDS = 2.0
_STALLED_EXIT_CODE = 70
_DUMP_SIGNAL = signal.SIGUSR2
_DUMP_SECONDS = 0.5


class Beacon:
    """Where a rank says what it does; a beat costs about a microsecond."""

    def __init__(self) -> None:
        directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        descriptor, name = tempfile.mkstemp(prefix=f"hvdyolo-beacon-{os.getpid()}-", dir=directory)
        os.ftruncate(descriptor, _BEACON.size)
        self._map = mmap.mmap(descriptor, _BEACON.size)
        os.close(descriptor)
        self.path = Path(name)
        self.beat("start", 0)

    def beat(self, phase: str, step: int, waits: bool = False) -> None:
        """Say that work goes on: ``phase`` begins, at optimizer step ``step``.

        Args:
            waits: the phase waits for other ranks, so if it lasts, one of them is the cause.
        """
        _BEACON.pack_into(self._map, 0, time.time(), step, waits, phase.encode()[:48])

    def close(self) -> None:
        """Remove the file behind it."""
        self._map.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Pulse:
    """One rank's last beat, as its watchdog publishes it."""

    rank: int
    host: str
    attempt: int
    beaten: float
    step: int
    waits: bool
    phase: str
    stopped: bool


class Watchdog:
    """The process beside a rank."""

    def __init__(self, process: "subprocess.Popen[bytes]", stacks: IO[str] | None) -> None:
        self._process = process
        self._stacks = stacks

    def stop(self) -> None:
        """End it."""
        if self._stacks is not None:
            faulthandler.unregister(_DUMP_SIGNAL)
            self._stacks.close()
        self._process.kill()
        self._process.wait()


def start_watchdog(
    beacon: Beacon, world: World | None, directory: Path | None, timeout: float, attempt: int = 0
) -> Watchdog:
    """Watch this process's ``beacon`` from another process.

    Args:
        world: this rank's place, if the launcher told it.
        directory: run directory, for the outcome, the stacks and the other ranks' beats; without one the
            watchdog knows its own rank only.
        timeout: seconds without a beat that end the job.
    """
    world = world or World.alone()
    log: Path | None = None
    stacks: IO[str] | None = None
    if directory is not None:
        (directory / "logs").mkdir(exist_ok=True)
        (directory / "watchdog").mkdir(exist_ok=True)
        log = directory / "logs" / f"watchdog-{world.rank:04d}.log"
        stacks = open(directory / "logs" / f"rank-{world.rank:04d}.stacks", "w")  # noqa: SIM115
        # In C, without the interpreter's lock: it works while a thread holds it for ever.
        faulthandler.register(_DUMP_SIGNAL, stacks, all_threads=True)
    watched = {
        "pid": os.getpid(),
        "beacon": str(beacon.path),
        "rank": world.rank,
        "size": world.size,
        "host": world.host,
        "directory": str(directory) if directory is not None else None,
        "timeout": timeout,
        "attempt": attempt,
    }
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hvdyolo.distributed.watchdog", json.dumps(watched)],
            env=environment_without_launcher(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Away from the terminal's and the launcher's signals: it has to outlive them.
            start_new_session=True,
        )
    return Watchdog(process, stacks)


class _Watch:
    """The watchdog process itself."""

    def __init__(
        self,
        pid: int,
        beacon: str,
        rank: int,
        size: int,
        host: str,
        directory: str | None,
        timeout: float,
        attempt: int,
    ) -> None:
        self.pid = pid
        self.rank = rank
        self.size = size
        self.host = host
        self.directory = Path(directory) if directory is not None else None
        self.timeout = timeout
        self.attempt = attempt
        self.beacon_path = Path(beacon)
        with open(beacon, "rb") as stream:
            self.beacon = mmap.mmap(stream.fileno(), _BEACON.size, access=mmap.ACCESS_READ)

    def run(self) -> None:
        """Watch until the rank ends or stands still."""
        seen = self.pulse()
        moved = time.monotonic()
        published = 0.0
        while self._rank_lives():
            pulse = self.pulse()
            now = time.monotonic()
            if pulse.beaten != seen.beaten:
                seen, moved = pulse, now
            if now - published > _PUBLISH_SECONDS:
                self._publish(pulse)
                published = now
            if now - moved > self.timeout:
                self._end_job(pulse)
                return
            time.sleep(min(self.timeout / 10, 0.5))
        self.beacon_path.unlink(missing_ok=True)  # of a rank that was killed; it removes it itself otherwise

    def pulse(self) -> Pulse:
        """The rank's last beat."""
        beaten, step, waits, phase = _BEACON.unpack(self.beacon[:])
        return Pulse(
            rank=self.rank,
            host=self.host,
            attempt=self.attempt,
            beaten=beaten,
            step=step,
            waits=waits,
            phase=phase.rstrip(b"\0").decode(errors="replace"),
            stopped=_state(self.pid) in ("T", "t"),
        )

    def _rank_lives(self) -> bool:
        # A rank that ended is inherited by another process.
        return os.getppid() == self.pid and _state(self.pid) not in ("Z", "X", "")

    def _publish(self, pulse: Pulse) -> None:
        if self.directory is not None:
            with contextlib.suppress(Exception):  # a full disk must not end the watch
                write_json(self.directory / "watchdog" / f"rank-{self.rank:04d}.json", asdict(pulse))

    def _end_job(self, own: Pulse) -> None:
        self._publish(own)
        if self.directory is not None:
            # Every rank that stands still tells where, before the first one's end takes the others along.
            self._signal(_DUMP_SIGNAL)
        # The other watchdogs see their ranks wait, and publish, within one turn of theirs.
        time.sleep(_PUBLISH_SECONDS + 1 if self.size > 1 else _DUMP_SECONDS)
        culprit = furthest_behind([*self._other_pulses(), own])
        stopped = " (stopped by a signal)" if culprit.stopped else ""
        detail = (
            f"Rank {culprit.rank} on {culprit.host} made no progress for {self.timeout:g} s "
            f"in phase '{culprit.phase}' at step {culprit.step}{stopped}."
        )
        if self.directory is not None:
            with contextlib.suppress(Exception):  # whatever happens, the job must end
                self._write_outcome(culprit, detail)
        self._tell(detail)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # another rank's end may have ended it
            os.kill(self.pid, number)

    def _write_outcome(self, culprit: Pulse, detail: str) -> None:
        assert self.directory is not None
        outcome = Outcome(
            exit_code=_STALLED_EXIT_CODE,
            reason=Reason.STALLED,
            detail=detail,
            step=culprit.step,
            epoch=0,
            attempt=self.attempt,
            host=culprit.host,
            time=time.time(),
        )
        write_outcome(self.directory, outcome)

    def _other_pulses(self) -> list[Pulse]:
        if self.directory is None:
            return []
        pulses = []
        for path in (self.directory / "watchdog").glob("rank-*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                pulses.append(Pulse(**json.loads(path.read_text())))
        return [
            pulse
            for pulse in pulses
            if pulse.attempt == self.attempt and pulse.rank != self.rank and pulse.rank < self.size
        ]

    def _tell(self, detail: str) -> None:
        """Say it where the rank would; not kept open, because mpirun waits for who holds its streams."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/fd/2", "a") as stream:
            stream.write(f"hvdyolo: {detail}\n")


def furthest_behind(pulses: list[Pulse]) -> Pulse:
    """The rank the others wait for: a stopped one, else one that does not wait, at the lowest step."""
    return min(pulses, key=lambda pulse: (not pulse.stopped, pulse.waits, pulse.step, pulse.beaten))


def _state(pid: int) -> str:
    """State letter of a process; empty if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


if __name__ == "__main__":
    _Watch(**json.loads(sys.argv[1])).run()
