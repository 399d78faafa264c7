"""Patches of one colour over a picture (cutout, arXiv 1708.04552; random erasing, arXiv 1708.04896)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.objects import Objects
from hvdyolo.data.parameters import Patch

MOST_COVERED = 0.6
"""Share of a box's pixels under patches above which nothing is left to be learnt."""


def cut_out(output: NDArray[np.uint8], objects: Objects, patches: Sequence[Patch]) -> Objects:
    """Lay patches over ``output`` (size, size, 3); returns the objects that still show."""
    size = len(output)
    covered = np.zeros((size, size), dtype=np.bool_)
    for patch in patches:
        area = _area(patch, size)
        output[area] = patch.colour
        covered[area] = True
    shares = [_share(covered, box) for box in objects.boxes_xyxy]
    return objects.kept(np.array(shares, dtype=np.float64) <= MOST_COVERED)


def _area(patch: Patch, size: int) -> tuple[slice, slice]:
    """Rows and columns."""
    (x, y), (width, height) = patch.centre, patch.sides
    return _span(y, height, size), _span(x, width, size)


def _span(centre: float, side: float, size: int) -> slice:
    return slice(max(0, round((centre - side / 2) * size)), max(0, round((centre + side / 2) * size)))


def _share(covered: NDArray[np.bool_], box: NDArray[np.floating]) -> float:
    """Of the pixels that a box touches."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    return float(covered[top:bottom, left:right].mean())
