"""Where the source images of an augmented sample go: geometry only, no pixels.

Three frames, all continuous with pixel i covering i … i + 1:

- the *canvas* the sample is laid out on before the affine: size x size for a letterboxed image,
  twice that for a mosaic;
- the *view*: the canvas zoomed and shifted, cut to what the output shows. Source images go into it
  by scaling alone, each in one resampling; without rotation and shear it is the output. Where the
  whole affine is to happen at once, as it was published, the view has the canvas's own scale;
- the *output*, size x size: the view under rotation and shear, and the zoom if the view has none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdyolo.ops.letterbox import Letterbox, fit_letterbox

# Boxes of the published method that survive an affine: sides, share of the area, aspect.
LEAST_SIDE = 2.0
LEAST_AREA = 0.1
GREATEST_ASPECT = 100.0


@dataclass(frozen=True)
class Affine:
    """What happens to the canvas: zoom, rotation, shear, and where its centre goes."""

    zoom: float = 1.0
    rotation: float = 0.0
    """Degrees."""
    shear_x: float = 0.0
    """Degrees."""
    shear_y: float = 0.0
    """Degrees."""
    centre_x: float = 0.5
    """Where the centre of the canvas goes, as a fraction of the output."""
    centre_y: float = 0.5

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


@dataclass(frozen=True)
class View:
    """The part of the canvas that the output shows, and the way from there to the output."""

    width: int
    height: int
    zoom: float
    """View pixels a canvas pixel."""
    origin: tuple[float, float]
    """Of the view, in zoomed canvas coordinates about the canvas centre."""
    to_output: NDArray[np.float64] | None
    """(2, 3) on (x, y, 1), or none where the view is the output."""
    magnification: float
    """Output pixels a view pixel, before rotation and shear."""

    @staticmethod
    def zoomed(affine: Affine, size: int) -> "View":
        """At the output's scale: the smallest that covers the whole output."""
        if affine.rotation == affine.shear_x == affine.shear_y == 0:
            origin = (-affine.centre_x * size, -affine.centre_y * size)
            return View(size, size, affine.zoom, origin, None, 1.0)
        return _view(affine, size, zoom=affine.zoom, magnification=1.0)

    @staticmethod
    def unzoomed(affine: Affine, size: int) -> "View":
        """At the canvas's scale."""
        return _view(affine, size, zoom=1.0, magnification=affine.zoom)


def _view(affine: Affine, size: int, zoom: float, magnification: float) -> View:
    matrix = magnification * affine.turn
    target = np.array([affine.centre_x * size, affine.centre_y * size])
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], dtype=np.float64) - target
    seen = corners @ np.linalg.inv(matrix).T
    # Interpolation reads a neighbour further than the corners.
    first = np.floor(seen.min(0)) - 2
    width, height = (np.ceil(seen.max(0)) + 2 - first).astype(int).tolist()
    to_output = np.column_stack([matrix, target + matrix @ first])
    return View(width, height, zoom, (first[0].item(), first[1].item()), to_output, magnification)


@dataclass(frozen=True)
class Span:
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
    """Source coordinates between which the canvas shows the tile."""

    @property
    def visible(self) -> bool:
        """Whether any pixel of the view lies in it."""
        return self.start < self.stop

    def to_view(self, coordinates: NDArray[np.floating]) -> NDArray[np.floating]:
        """Source coordinates in the view, cut to the canvas."""
        return coordinates.clip(*self.shown) * self.scale + self.offset


@dataclass(frozen=True)
class Tile:
    """One source image in the view."""

    across: Span
    down: Span

    @property
    def visible(self) -> bool:
        """Whether any pixel of the view shows it: if not, it need not be decoded."""
        return self.across.visible and self.down.visible


def letterbox_tile(height: int, width: int, size: int, view: View) -> Tile:
    """The tile of a single letterboxed image."""
    fit = fit_letterbox(height, width, size)
    return _tile(height, width, fit, fit.pad_left, fit.pad_top, size, view)


def mosaic_tiles(
    sizes: Sequence[tuple[int, int]],
    centre_x: int,
    centre_y: int,
    size: int,
    view: View,
) -> list[Tile]:
    """Four images around a pixel corner of the canvas, each with its corner there.

    ``sizes`` are height and width of the images top left, top right, bottom left, bottom right.
    """
    tiles = []
    for (height, width), right, below in zip(sizes, (0, 1, 0, 1), (0, 0, 1, 1), strict=True):
        fit = fit_letterbox(height, width, size)
        left = centre_x if right else centre_x - fit.resized_width
        top = centre_y if below else centre_y - fit.resized_height
        tiles.append(_tile(height, width, fit, left, top, 2 * size, view))
    return tiles


def _tile(height: int, width: int, fit: Letterbox, left: int, top: int, canvas: int, view: View) -> Tile:
    """An image at its letterbox scale, its corner at (``left``, ``top``) of the canvas."""
    return Tile(
        _span(width, fit.resized_width, left, canvas, view.zoom, view.origin[0], view.width),
        _span(height, fit.resized_height, top, canvas, view.zoom, view.origin[1], view.height),
    )


def _span(length: int, resized: int, place: int, canvas: int, zoom: float, origin: float, view: int) -> Span:
    """Lay ``length`` source pixels, ``resized`` long on the canvas at ``place``, into the view.

    A view pixel belongs to the tile if its centre does, so tiles that touch on the canvas leave
    neither gap nor overlap. What fills those pixels is rounded to whole source pixels, which moves
    the picture by half a source pixel at most; the scale and offset returned are the rounded ones,
    so boxes move with it.
    """
    scale = zoom * resized / length
    offset = zoom * (place - canvas / 2) - origin
    shown = max(0.0, -place * length / resized), min(length, (canvas - place) * length / resized)
    start = max(0, math.ceil(shown[0] * scale + offset - 0.5))
    stop = min(view, math.ceil(shown[1] * scale + offset - 0.5))
    if start >= stop:
        return Span(start, start, 0, 0, scale, offset, shown)
    first = min(max(0, round((start - offset) / scale)), length - 1)
    last = min(max(first + 1, round((stop - offset) / scale)), length)
    scale = (stop - start) / (last - first)
    return Span(start, stop, first, last, scale, start - first * scale, shown)


def place_boxes(boxes_xyxy: NDArray[np.floating], tile: Tile) -> NDArray[np.floating]:
    """Boxes in source pixels to boxes in view pixels, cut to the canvas; (n, 4) to (n, 4)."""
    placed = np.empty_like(boxes_xyxy)
    placed[:, 0::2] = tile.across.to_view(boxes_xyxy[:, 0::2])
    placed[:, 1::2] = tile.down.to_view(boxes_xyxy[:, 1::2])
    return placed


def output_boxes(
    placed_xyxy: NDArray[np.floating], view: View, size: int
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Boxes in view pixels to boxes in output pixels, cut to the output.

    Returns:
        Boxes (n, 4), and which of them are still worth learning (n,).
    """
    moved = placed_xyxy
    if view.to_output is not None:
        corners = placed_xyxy[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
        turned = corners @ view.to_output[:, :2].T + view.to_output[:, 2]
        moved = np.concatenate([turned.min(1), turned.max(1)], axis=1)
    moved = moved.clip(0, size)
    return moved, worth_learning(placed_xyxy * view.magnification, moved)


def worth_learning(before_xyxy: NDArray[np.floating], after_xyxy: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which boxes keep more than 2 pixels a side, a tenth of their area and an aspect below 100.

    The area is compared with that at the output's zoom, before rotation, shear and its edges.
    """
    before = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after = after_xyxy[:, 2:] - after_xyxy[:, :2]
    sides = after.min(1, initial=np.inf)
    return np.asarray(
        (sides > LEAST_SIDE)
        & (after.prod(1) > LEAST_AREA * before.prod(1))
        & (after.max(1, initial=0.0) < GREATEST_ASPECT * sides)
    )
