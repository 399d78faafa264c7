"""Which images a rank evaluates together, and how large their batch's inputs are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvdyolo.data.reader import PackedSplit
from hvdyolo.ops.letterbox import common_rectangle, fit_letterbox


@dataclass(frozen=True)
class InputBatch:
    """Samples of one forward pass, and the size of their inputs in pixels."""

    samples: Sequence[int]
    height: int
    width: int


def square_batches(split: PackedSplit, side: int, batch: int, rank: int, size: int) -> list[InputBatch]:
    """A rank's share of squares: every ``size``-th sample from ``rank`` on."""
    share = range(rank, len(split), size)
    return [InputBatch(share[first : first + batch], side, side) for first in range(0, len(share), batch)]


def rectangular_batches(
    split: PackedSplit, side: int, batch: int, multiple: int, rank: int, size: int
) -> list[InputBatch]:
    """A rank's share of rectangles: every ``size``-th batch of images of like shape, from ``rank`` on.

    The split alone decides which images share a batch, and so a rectangle: the number of ranks changes no
    input.
    """
    shapes = np.concatenate(
        [columns.heights / columns.widths for columns in split.columns(range(len(split)))]
    )
    order = shapes.argsort(kind="stable")
    batches = []
    for first in range(rank * batch, len(order), size * batch):
        samples = order[first : first + batch].tolist()
        fits = (fit_letterbox(*split.size(sample), side) for sample in samples)
        batches.append(InputBatch(samples, *common_rectangle(fits, multiple)))
    return batches
