"""Which cells and anchors learn which box: geometry alone, so loader workers compute it.

A box goes to every anchor of a like shape, in the cell of its centre and in the nearer neighbour along each
axis. (YOLOv5's published assignment; only numpy here, it runs beside decoding.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.float32]

# How far from the centre a cell is taken, in cells: its own, then left, up, right, down, as (columns, rows).
# The order decides who keeps a cell.
_HALF = 0.5
_OFFSETS = _HALF * np.array([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]], dtype=np.float32)


@dataclass(frozen=True)
class LevelMatches:
    """The M matches of some images at one level.

    Attributes:
        cell: (M,) index into the level flattened as (B, anchors, H, W).
        box_cxcywh: (M, 4) in cells: centre less the corner of the assigned cell, and size.
        anchor_wh: (M, 2) in cells.
        label: (M,) class numbers.
        keeps_objectness: (M,) false where a later match takes the same cell and anchor.
    """

    cell: NDArray[np.int64]
    box_cxcywh: NDArray[np.float32]
    anchor_wh: NDArray[np.float32]
    label: NDArray[np.int64]
    keeps_objectness: NDArray[np.bool_]


@dataclass(frozen=True)
class Assigner:
    """Assigns labels to cells.

    Attributes:
        strides: input pixels a cell, a level.
        anchors: (levels, anchors, 2) widths and heights in pixels.
        threshold: an anchor takes a box if neither side differs by this factor or more.
    """

    strides: tuple[int, ...]
    anchors: NDArray[np.float32]
    threshold: float

    def __call__(
        self, labels: Sequence[Labels], height: int, width: int, first_image: int = 0
    ) -> tuple[LevelMatches, ...]:
        """Matches of consecutive images, a level.

        Args:
            labels: (n, 5) of each image: class, cx, cy, w, h in 0..1 of the input.
            height: of the input, pixels.
            width: of the input, pixels.
            first_image: number of the first image in its batch.
        """
        images = np.repeat(np.arange(len(labels)) + first_image, [len(image) for image in labels])
        rows = np.concatenate([np.zeros((0, 5), np.float32), *labels])
        return tuple(
            self._assign_level(rows, images, level, height // stride, width // stride)
            for level, stride in enumerate(self.strides)
        )

    def _assign_level(
        self, rows: Labels, images: NDArray[np.int64], level: int, height: int, width: int
    ) -> LevelMatches:
        anchors = self.anchors[level] / np.float32(self.strides[level])  # (A, 2) in cells
        grid = np.array([width, height], dtype=np.float32)
        centres, sizes = rows[:, 1:3] * grid, rows[:, 3:5] * grid
        ratios = sizes[None] / anchors[:, None]  # (A, n, 2)
        fits = np.maximum(ratios, 1 / np.maximum(ratios, 1e-12)).max(-1) < self.threshold
        anchor, row = fits.nonzero()  # by anchor, then by row
        offset, match = _takes_offsets(centres, grid)[:, row].nonzero()  # by offset, then anchor, then row
        anchor, row = anchor[match], row[match]
        # Float rounding of labels can bring a centre to the far border, where no cell begins.
        assigned = (centres[row] + _OFFSETS[offset]).astype(np.int64).clip(0, [width - 1, height - 1])
        cell = ((images[row] * len(anchors) + anchor) * height + assigned[:, 1]) * width + assigned[:, 0]
        return LevelMatches(
            cell=cell,
            box_cxcywh=np.hstack([centres[row] - assigned, sizes[row]]).astype(np.float32),
            anchor_wh=anchors[anchor].astype(np.float32),
            label=rows[row, 0].astype(np.int64),
            keeps_objectness=_last_of_each(cell),
        )


def _takes_offsets(centres: NDArray[np.float32], grid: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(5, n): which of ``_OFFSETS`` centres (n, 2) take, of a grid (2,) so many cells wide and high.

    Left and up are measured from the near end of the grid, right and down from the far one. So a centre on
    the border of two cells takes the one before it and, by the offset that goes the other way, its own once
    more: twice the weight, as published.
    """
    from_end = grid - centres
    left, up = ((centres % 1 < _HALF) & (centres > 1)).T
    right, down = ((from_end % 1 < _HALF) & (from_end > 1)).T
    return np.stack([np.ones_like(left), left, up, right, down])


def _last_of_each(cell: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True at the last place of every distinct value."""
    keeps = np.zeros(len(cell), dtype=np.bool_)
    _, first_from_behind = np.unique(cell[::-1], return_index=True)
    keeps[len(cell) - 1 - first_from_behind] = True
    return keeps
