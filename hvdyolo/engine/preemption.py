"""Requests to stop early, as SLURM and users send them."""

import signal
from types import FrameType


class StopRequest:
    """Remembers that SIGUSR1 or SIGTERM asked for a stop; training acts on it at a step boundary.

    The batch scripts start ranks with SIGUSR1 ignored, because its default action would kill them while
    they still import; only from here on it is honoured.
    """

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
