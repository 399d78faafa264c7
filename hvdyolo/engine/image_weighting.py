"""Training images drawn more often where their classes are rare and not yet found.

As published, a class weighs (1 - its AP)² / its share of the boxes, and an image the sum over its boxes. All
of it follows from the data and from merged scores, so it is the same on all ranks.

Loader workers begin with an epoch before the previous one is evaluated. So an epoch goes by the evaluation
before that, the last that was complete before the previous epoch ended. It is known in time if an epoch has
as many batches as are loaded ahead, which :func:`check_image_weighting` sees to.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hvdyolo.config import Config
from hvdyolo.data.image_weights import WeightedDraw, count_boxes, weigh_images
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.utils.errors import UsageError

Evaluations = Iterable[tuple[int, Sequence[float]]]
"""Epochs that were done, and the AP of every class then."""

_KEPT = 2  # evaluations: that of the epoch which is trained, and that of the next
_BEST_AP = 0.99  # a class that is found perfectly keeps a ten-thousandth of its weight


class ImageWeighting:
    """What the images of a run weigh in each epoch.

    Attributes:
        evaluations: the latest, which a resumed run needs; epochs that were done to APs.
    """

    def __init__(self, split: PackedSplit, seed: int, evaluations: Evaluations = ()) -> None:
        """Raises:
        UsageError: there is no box to go by.
        """
        counts = count_boxes(split)
        if not counts.any():
            raise UsageError("train.image_weighting needs boxes, and the training images have none.")
        self._split = split
        self._seed = seed
        # Classes without boxes weigh nothing anywhere.
        self._rarity = counts.sum() / np.maximum(counts, 1)
        self.evaluations = {epoch: tuple(scores) for epoch, scores in evaluations}
        # One table at a time: an epoch's draws are all made before those of the next.
        self._draw_of = lru_cache(maxsize=1)(self._build_draw)

    def note(self, epoch: int, scores: Sequence[float]) -> None:
        """Remember the AP of every class when ``epoch`` epochs were done."""
        # A new one: images may be drawn in another thread meanwhile.
        evaluations = {**self.evaluations, epoch: tuple(scores)}
        self.evaluations = dict(sorted(evaluations.items())[-_KEPT:])

    def draw(self, epoch: int, positions: range) -> NDArray[np.int64]:
        """The samples at some positions of an epoch, as :class:`WeightedDraw` gives them."""
        return self._draw_of(self._scores_of(epoch))(epoch, positions)

    def class_weights(self, epoch: int) -> NDArray[np.float64]:
        """(classes,)."""
        return self._weights(self._scores_of(epoch))

    def _scores_of(self, epoch: int) -> tuple[float, ...] | None:
        """The last that were known when the epoch before ``epoch`` began."""
        evaluations = self.evaluations
        known = [done for done in evaluations if done < epoch]
        return evaluations[max(known)] if known else None

    def _weights(self, scores: tuple[float, ...] | None) -> NDArray[np.float64]:
        # COCO says -1 of what it cannot score.
        found = np.clip(scores if scores is not None else np.zeros(len(self._rarity)), 0, _BEST_AP)
        weights: NDArray[np.float64] = self._rarity * np.square(1 - found)
        return weights

    def _build_draw(self, scores: tuple[float, ...] | None) -> WeightedDraw:
        return WeightedDraw(self._seed, weigh_images(self._split, self._weights(scores)).cumsum())


def check_image_weighting(config: Config, schedule: TrainingSchedule, *, copied_ahead: bool) -> None:
    """Check that images can be drawn by weight with the other settings.

    Args:
        copied_ahead: batches that workers have done are copied for a GPU, ``loader.prefetch`` ahead.

    Raises:
        UsageError: they cannot.
    """
    if not config.train.image_weighting:
        return
    for key, value, needed in (
        ("loader.order", config.loader.order, "exact"),
        ("augment.partners", config.augment.partners, "any"),
    ):
        if value != needed:
            raise UsageError(
                f"train.image_weighting draws images from everywhere: it needs {key} {needed}, not {value}."
            )
    ahead = schedule.accumulation + config.loader.prefetch * (2 if copied_ahead else 1)
    if schedule.batches < ahead:
        twice = "twice " if copied_ahead else ""
        raise UsageError(
            f"train.image_weighting needs epochs of at least {ahead} batches ({twice}loader.prefetch and one "
            f"optimizer step's), and there are {schedule.batches}: lower train.batch or loader.prefetch."
        )
