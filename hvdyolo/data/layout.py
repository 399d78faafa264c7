"""Where images lie on the canvas: one alone, four around a point, or nine around the middle one."""

from collections.abc import Sequence

from hvdyolo.data.placement import Cell, Tile, View, place_tile
from hvdyolo.ops.letterbox import fit_letterbox


def canvas_side(images: int, size: int) -> int:
    """Of the canvas for so many images, pixels, at the output's size."""
    return size if images == 1 else 2 * size


def lay_out(
    sizes: Sequence[tuple[int, int]], meeting: tuple[float, float], size: int, view: View
) -> list[Tile]:
    """Tiles of one, four or nine images, row by row.

    Args:
        sizes: heights and widths of the images.
        meeting: where four images meet, as a fraction of the output size; of nine, where the middle one
            has its centre. Both are in 0.5 … 1.5.
        size: of the output.
        view: of the canvas.
    """
    if len(sizes) == 1:
        return [_single(*sizes[0], size, view)]
    x, y = int(meeting[0] * size), int(meeting[1] * size)
    return _four(sizes, x, y, size, view) if len(sizes) == 4 else _nine(sizes, x, y, size, view)


def _single(height: int, width: int, size: int, view: View) -> Tile:
    fit = fit_letterbox(height, width, size)
    return place_tile(height, width, fit, fit.pad_left, fit.pad_top, Cell(0, 0, size, size), view)


def _four(sizes: Sequence[tuple[int, int]], x: int, y: int, size: int, view: View) -> list[Tile]:
    """Each image has a corner at the pixel corner (``x``, ``y``) of the canvas."""
    tiles = []
    canvas = Cell(0, 0, view.canvas, view.canvas)
    for place, (height, width) in enumerate(sizes):
        row, column = divmod(place, 2)
        fit = fit_letterbox(height, width, size)
        left = x if column else x - fit.resized_width
        top = y if row else y - fit.resized_height
        tiles.append(place_tile(height, width, fit, left, top, canvas, view))
    return tiles


def _nine(sizes: Sequence[tuple[int, int]], x: int, y: int, size: int, view: View) -> list[Tile]:
    """The middle image's edges divide the canvas into three rows and columns.

    Each neighbour touches it, with a corner or in the middle of an edge, and is cut to its row and column.
    The canvas, twice the output's size, is a random part of the square of three that nine images make.
    """
    middle = fit_letterbox(*sizes[4], size)
    left, top = x - size // 2 + middle.pad_left, y - size // 2 + middle.pad_top
    right, bottom = left + middle.resized_width, top + middle.resized_height
    columns, rows = (0, left, right, view.canvas), (0, top, bottom, view.canvas)
    tiles = []
    for place, (height, width) in enumerate(sizes):
        row, column = divmod(place, 3)
        fit = fit_letterbox(height, width, size)
        lefts = left - fit.resized_width, (left + right - fit.resized_width) // 2, right
        tops = top - fit.resized_height, (top + bottom - fit.resized_height) // 2, bottom
        cell = Cell(columns[column], rows[row], columns[column + 1], rows[row + 1])
        tiles.append(place_tile(height, width, fit, lefts[column], tops[row], cell, view))
    return tiles
