"""Where the source images of an augmented sample go: geometry only, no pixels.

Three frames, all continuous with pixel i covering i … i + 1:

- the *canvas* the sample is laid out on before the homography: size x size for a letterboxed image,
  twice that for a mosaic;
- the *view*: what the output shows of the canvas, zoomed and shifted. Source images go into it
  by scaling alone, each in one resampling; without rotation, shear and perspective it is the output.
  Where everything is to happen at once, as it was published, the view has the canvas's own scale;
- the *output*, size x size: the view under rotation, shear and perspective, and the zoom if the view
  has none.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvdyolo.ops.letterbox import Letterbox

Matrix = NDArray[np.floating]
"""(3, 3) on (x, y, 1); what it gives is divided by its last number, w."""

# Boxes of the published method that survive: sides, share of the area, aspect.
LEAST_SIDE = 2.0
LEAST_AREA = 0.1
GREATEST_ASPECT = 100.0


# Boxes are cut off where w is this share of the least that shows: nothing behind the horizon is projected.
_HORIZON = 0.9


@dataclass(frozen=True)
class Homography:
    """What happens to the canvas: zoom, rotation, shear, where its centre goes, and perspective."""

    zoom: float = 1.0
    rotation: float = 0.0
    """Degrees."""
    shear_x: float = 0.0
    """Degrees."""
    shear_y: float = 0.0
    """Degrees."""
    centre_x: float = 0.5
    """Where the centre of the canvas goes before perspective, as a fraction of the output."""
    centre_y: float = 0.5
    perspective_x: float = 0.0
    """Scale at the right edge of the output is 1 + this of that in its middle, at the left edge 1 - this."""
    perspective_y: float = 0.0
    """The same from top to bottom. The sum of both is below 1, or the horizon would be in the output."""

    @property
    def scales_only(self) -> bool:
        """Whether pixels stay in their rows and columns."""
        turned = self.rotation, self.shear_x, self.shear_y, self.perspective_x, self.perspective_y
        return not any(turned)

    @property
    def turn(self) -> NDArray[np.float64]:
        """Rotation, then shear, without the zoom: a (2, 2) matrix on columns (x, y)."""
        angle = math.radians(self.rotation)
        shear = np.array(
            [
                [1.0, math.tan(math.radians(self.shear_x))],
                [math.tan(math.radians(self.shear_y)), 1.0],
            ]
        )
        rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        turn: NDArray[np.float64] = shear @ rotation
        return turn

    def perspective(self, size: int) -> Matrix:
        """Perspective alone, about the middle of the output.

        A point p from the middle goes to p / w, w = 1 - (a p_x + b p_y) / (size / 2). Back from (x, y) of the
        output, w is 1 / (1 + a u + b v), u and v from -1 to 1 over the output: positive wherever it shows.
        """
        half = size / 2
        about_middle = np.eye(3)
        about_middle[2, :2] = -self.perspective_x / half, -self.perspective_y / half
        matrix: Matrix = shift(half, half) @ about_middle @ shift(-half, -half)
        return matrix


def shift(x: float, y: float) -> Matrix:
    """The matrix that moves points by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class View:
    """The part of the canvas that the output shows, and the way from there to the output."""

    width: int
    height: int
    canvas: int
    """Side of the canvas, in its own pixels."""
    zoom: float
    """View pixels a canvas pixel."""
    origin: tuple[float, float]
    """Of the view, in zoomed canvas coordinates about the canvas centre."""
    to_output: Matrix | None
    """None where the view is the output."""
    magnification: float
    """Output pixels a view pixel, before rotation, shear and perspective."""

    @staticmethod
    def zoomed(homography: Homography, canvas: int, size: int) -> "View":
        """At the output's scale: the output itself, or what is turned into it."""
        if homography.scales_only:
            origin = (-homography.centre_x * size, -homography.centre_y * size)
            return View(size, size, canvas, homography.zoom, origin, None, 1.0)
        return _view(homography, canvas, size, zoom=homography.zoom, magnification=1.0)

    @staticmethod
    def unzoomed(homography: Homography, canvas: int, size: int) -> "View":
        """At the canvas's scale."""
        return _view(homography, canvas, size, zoom=1.0, magnification=homography.zoom)


def _view(homography: Homography, canvas: int, size: int, zoom: float, magnification: float) -> View:
    from_centre = shift(homography.centre_x * size, homography.centre_y * size)
    from_centre[:2, :2] = magnification * homography.turn
    to_output: Matrix = homography.perspective(size) @ from_centre
    seen, _ = project(_corners_of_output(size), np.linalg.inv(to_output))
    # Beyond the canvas all is grey. Interpolation reads a neighbour further.
    half = zoom * canvas / 2
    first = np.floor(seen.min(0).clip(-half, half)) - 2
    width, height = (np.ceil(seen.max(0).clip(-half, half)) + 2 - first).astype(int).tolist()
    origin = first[0].item(), first[1].item()
    return View(width, height, canvas, zoom, origin, to_output @ shift(*origin), magnification)


def _corners_of_output(size: int) -> NDArray[np.float64]:
    return np.array([[0, 0], [size, 0], [0, size], [size, size]], dtype=np.float64)


def project(
    points: NDArray[np.floating], matrix: Matrix
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Points (…, 2) under a matrix, and their w (…)."""
    projected = points @ matrix[:, :2].T + matrix[:, 2]
    w = projected[..., 2]
    return projected[..., :2] / w[..., None], w


class Span(NamedTuple):  # eight a sample: a frozen dataclass takes five times as long to make
    """One axis of a tile: source pixels first … last - 1 fill view pixels start … stop - 1."""

    start: int
    stop: int
    first: int
    last: int
    scale: float
    """View pixels a source pixel."""
    offset: float
    """Place of the source's edge in the view."""
    shown: tuple[float, float]
    """Source coordinates between which the tile's cell shows it."""

    @property
    def visible(self) -> bool:
        """Whether any pixel of the view lies in it."""
        return self.start < self.stop


class Tile(NamedTuple):
    """One source image in the view."""

    across: Span
    down: Span

    @property
    def visible(self) -> bool:
        """Whether any pixel of the view shows it: if not, it need not be decoded."""
        return self.across.visible and self.down.visible


class Cell(NamedTuple):
    """The part of the canvas that belongs to one image: what of it is outside is cut off."""

    left: int
    top: int
    right: int
    bottom: int


def place_tile(height: int, width: int, fit: Letterbox, left: int, top: int, cell: Cell, view: View) -> Tile:
    """An image at its letterbox scale, its corner at (``left``, ``top``) of the canvas, cut to its cell."""
    return Tile(
        across=_span(width, fit.resized_width, left, (cell.left, cell.right), view, 0),
        down=_span(height, fit.resized_height, top, (cell.top, cell.bottom), view, 1),
    )


def _span(length: int, resized: int, place: int, cell: tuple[int, int], view: View, axis: int) -> Span:
    """Lay ``length`` source pixels, ``resized`` long on the canvas at ``place``, into the view.

    A view pixel belongs to the tile if its centre does, so tiles that touch on the canvas leave
    neither gap nor overlap. What fills those pixels is rounded to whole source pixels, which moves
    the picture by half a source pixel at most; the scale and offset returned are the rounded ones,
    so boxes move with it.
    """
    zoom, middle, origin = view.zoom, view.canvas / 2, view.origin[axis]
    cell_start, cell_stop = cell
    scale = zoom * resized / length
    offset = zoom * (place - middle) - origin
    shown = (
        max(0.0, (cell_start - place) * length / resized),
        min(length, (cell_stop - place) * length / resized),
    )
    # From the edges on the canvas, which neighbours share: their own scales would round them differently.
    left = math.ceil(zoom * (max(place, cell_start) - middle) - origin - 0.5)
    right = math.ceil(zoom * (min(place + resized, cell_stop) - middle) - origin - 0.5)
    start, stop = max(0, left), min((view.width, view.height)[axis], right)
    if start >= stop:
        return Span(start, start, 0, 0, scale, offset, shown)
    first = min(max(0, round((start - offset) / scale)), length - 1)
    last = min(max(first + 1, round((stop - offset) / scale)), length)
    scale = (stop - start) / (last - first)
    return Span(start, stop, first, last, scale, start - first * scale, shown)


def uncovered(tiles: Sequence[Tile], height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of a view that none of some visible tiles, which never overlap, has."""
    edges = {0, height, *(edge for tile in tiles for edge in (tile.down.start, tile.down.stop))}
    for top, bottom in pairwise(sorted(edges)):
        left = 0
        for start, stop in sorted(
            (tile.across.start, tile.across.stop) for tile in tiles if tile.down.start <= top < tile.down.stop
        ):
            if left < start:
                yield slice(top, bottom), slice(left, start)
            left = stop
        if left < width:
            yield slice(top, bottom), slice(left, width)


def place_boxes(
    boxes_xyxy: NDArray[np.floating], tiles: Sequence[Tile], counts: Sequence[int]
) -> NDArray[np.floating]:
    """Boxes in source pixels to boxes in view pixels, cut to their tile's cell; (n, 4) to (n, 4).

    Those of one tile after those of another, ``counts`` of each: a call a tile would cost four times as much.
    """
    axes = [[(*span.shown, span.scale, span.offset) for span in (tile.across, tile.down)] for tile in tiles]
    of_each = np.repeat(np.array(axes), counts, axis=0)[:, None]  # (n, 1, 2 axes, 4)
    low, high, scale, offset = (of_each[..., column] for column in range(4))
    corners = boxes_xyxy.reshape(-1, 2, 2)
    placed: NDArray[np.floating] = corners.clip(low, high) * scale + offset
    return placed.reshape(-1, 4)


def output_boxes(
    placed_xyxy: NDArray[np.floating], view: View, size: int
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Boxes in view pixels to boxes in output pixels, cut to the output.

    Returns:
        Boxes (n, 4), and which of them are still worth learning (n,).
    """
    moved = placed_xyxy if view.to_output is None else project_boxes(placed_xyxy, view.to_output, size)
    moved = moved.clip(0, size)
    return moved, worth_learning(placed_xyxy * view.magnification, moved)


def project_boxes(boxes_xyxy: NDArray[np.floating], matrix: Matrix, size: int) -> NDArray[np.floating]:
    """Bounds of boxes (n, 4) under a matrix into an output, not cut to it; no size behind the horizon."""
    corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)  # around the box
    w = corners @ matrix[2, :2] + matrix[2, 2]
    least = _HORIZON * _least_w(matrix, size)
    seen = np.where((w >= least)[..., None], corners, np.nan)
    points, _ = project(np.concatenate([seen, _crossings(corners, w, least)], axis=1), matrix)
    points[(w < least).all(1)] = 0
    return np.concatenate([np.nanmin(points, axis=1), np.nanmax(points, axis=1)], axis=1)


def _least_w(matrix: Matrix, size: int) -> float:
    """Of the points that show in the output: there and back, w multiplies to 1."""
    _, back = project(_corners_of_output(size), np.linalg.inv(matrix))
    return float(1 / back.max())


def _crossings(corners: NDArray[np.floating], w: NDArray[np.floating], least: float) -> NDArray[np.floating]:
    """(n, 4, 2): where the edges of quadrilaterals (n, 4, 2) have ``w`` = ``least``, nan where nowhere."""
    ends, w_ends = np.roll(corners, -1, axis=1), np.roll(w, -1, axis=1)
    passes = (w < least) != (w_ends < least)
    share = np.divide(least - w, w_ends - w, out=np.full_like(w, np.nan), where=passes)
    crossings: NDArray[np.floating] = corners + share[..., None] * (ends - corners)
    return crossings


def worth_learning(before_xyxy: NDArray[np.floating], after_xyxy: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which boxes keep more than 2 pixels a side, a tenth of their area and an aspect below 100.

    The area is compared with that at the output's zoom, before rotation, shear and its edges.
    """
    before = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after = after_xyxy[:, 2:] - after_xyxy[:, :2]
    # Not by min, max and prod over an axis, which take ten times as long for some boxes.
    shorter, longer = np.minimum(after[:, 0], after[:, 1]), np.maximum(after[:, 0], after[:, 1])
    return np.asarray(
        (shorter > LEAST_SIDE)
        & (after[:, 0] * after[:, 1] > LEAST_AREA * (before[:, 0] * before[:, 1]))
        & (longer < GREATEST_ASPECT * shorter)
    )
