"""Telling, from another process, whether a process still lives."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one machine, for good: process numbers are used again, start times are not.

    Attributes:
        host: name of the machine, for people.
        machine: its boot and its namespace of process numbers, within which ``pid`` means something.
        pid: process number.
        started: clock ticks from boot to the start of the process.
    """

    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """This process."""
        pid = os.getpid()
        state = _state_and_start(pid)
        return cls(socket.gethostname(), _machine(), pid, state[1] if state else 0)

    def is_known_dead(self) -> bool:
        """True if the process has certainly ended; false for every process of another machine."""
        if self.machine != _machine():
            return False
        state = _state_and_start(self.pid)
        # A zombie does nothing any more; it waits for its parent to notice.
        return state is None or state[0] in "ZX" or state[1] != self.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers on one host count their processes separately.
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, ``None`` if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may itself hold anything.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
