"""How far all ranks and jobs are together: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

from hvdyolo.engine.detection_plan import Plan
from hvdyolo.engine.journal import LOGGER
from hvdyolo.engine.parts import Parts

# Seconds. Each look lists the directory of parts.
_BAR_INTERVAL = 1.0
_LINE_INTERVAL = 10.0


class ProgressDisplay:
    """Call ``show`` as often as you like; it looks at the parts when it is time."""

    def __init__(self, parts: Parts, plan: Plan) -> None:
        self._parts = parts
        self._plan = plan
        self._begun_with = self._images_done()
        self._started = self._last = time.monotonic()
        self._bar = (
            tqdm(total=plan.images, initial=self._begun_with, unit="image") if sys.stderr.isatty() else None
        )
        if self._begun_with:
            LOGGER.info("%d of %d images are done already", self._begun_with, plan.images)

    def show(self) -> None:
        """Bring the display up to date, if it is time."""
        now = time.monotonic()
        if now - self._last < (_LINE_INTERVAL if self._bar is None else _BAR_INTERVAL):
            return
        self._last = now
        done = self._images_done()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        speed = (done - self._begun_with) / (now - self._started)
        LOGGER.info("%d/%d images, %.1f images/s", done, self._plan.images, speed)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.update(self._images_done() - self._bar.n)
            self._bar.close()

    def _images_done(self) -> int:
        return sum(len(self._plan.ids(chunk)) for chunk in self._parts.finished())
