"""How far a packing is."""

import time
from collections.abc import Callable

from hvdyolo.data.team import Team

_PROGRESS_SECONDS = 10.0


class Progress:
    """Counts images and tells of them now and then; fails when another rank has failed."""

    def __init__(self, total: int, team: Team, tell: Callable[[str], None] | None) -> None:
        """``tell`` is given a line every ten seconds, of all ranks' work."""
        self._total = total
        self._team = team
        self._tell = tell
        self._told = time.monotonic()

    def add(self, images: int) -> None:
        """So many more are packed."""
        self._team.add_done(images)
        self.look()

    def look(self) -> None:
        """Tell, if it is time.

        Raises:
            HvdyoloError: another rank failed.
        """
        self._team.check()
        now = time.monotonic()
        if self._tell is not None and now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            self._tell(f"  {self._team.done} of {self._total} images")
