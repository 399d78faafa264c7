"""Images drawn with replacement, in proportion to the weights of the boxes on them.

A draw follows from seed, epoch and position alone, so a batch depends neither on ranks nor on workers. It is
made in the training process: the table it needs, 8 bytes a sample, is in memory once a rank and not once a
worker.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.format import CROWD
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import PackedSplit

PARTNERS = 64
"""Samples that are drawn along with each, of which mosaics and mixup take theirs."""


def count_boxes(split: PackedSplit) -> NDArray[np.int64]:
    """(classes,) boxes of each class; crowds do not count."""
    counts = np.zeros(len(split.names), dtype=np.int64)
    for columns in split.columns(range(len(split))):
        objects = columns.flags & CROWD == 0
        counts += np.bincount(columns.labels[objects, 0].astype(np.int64), minlength=len(counts))
    return counts


def weigh_images(split: PackedSplit, class_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,) sums of the weights of their boxes' classes; crowds do not count."""
    weights = []
    for columns in split.columns(range(len(split))):
        objects = columns.flags & CROWD == 0
        of_boxes = class_weights[columns.labels[objects, 0].astype(np.int64)]
        weights.append(np.bincount(columns.owners[objects], of_boxes, len(columns.boxes)))
    return np.concatenate(weights)


@dataclass(frozen=True, eq=False)
class WeightedDraw:
    """Samples by their weights.

    Attributes:
        cumulative: (samples,) sums of the weights of each sample and those before it; the last is above 0.
    """

    seed: int
    cumulative: NDArray[np.float64]

    def __call__(self, epoch: int, positions: range) -> NDArray[np.int64]:
        """(n, 1 + PARTNERS) for each position of an epoch its sample, and samples to mix into it."""
        uniform = np.stack(
            [
                sample_generator(self.seed, epoch, position, Purpose.IMAGE_WEIGHTING).random(1 + PARTNERS)
                for position in positions
            ]
        )
        total = self.cumulative[-1]
        drawn = self.cumulative.searchsorted(uniform * total, side="right")
        # Rounding may give the total itself, which lies behind the last sample that has a weight.
        samples: NDArray[np.int64] = np.minimum(drawn, self.cumulative.searchsorted(total))
        return samples
