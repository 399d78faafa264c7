"""One image, or a mosaic, under a homography: pixels and objects.

The whole canvas is never made, images and rows below what shows are not decoded, and each is resampled as
:mod:`hvdyolo.data.render` says: by default once, from its own pixels into its visible rectangle of the
output, with a second, bilinear step only for rotation, shear and perspective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.copy_paste import paste_mirrored
from hvdyolo.data.layout import canvas_side, lay_out
from hvdyolo.data.objects import Objects
from hvdyolo.data.outlines import Outlines
from hvdyolo.data.parameters import PictureParameters
from hvdyolo.data.placement import Tile, output_boxes, place_boxes
from hvdyolo.data.render import Renderer


class ImageSource(Protocol):
    """The images and labels of a split."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, without decoding."""
        ...

    def image(self, index: int, rows: int) -> NDArray[np.uint8] | None:
        """Pixels, (H, W, 3) RGB, of which rows from ``rows`` on may be missing.

        ``None`` leaves its place grey and without labels.
        """
        ...

    def labels(self, index: int) -> NDArray[np.float32]:
        """(n, 5): class, cx, cy, w, h in 0..1 of the image."""
        ...

    def outlines(self, index: int) -> Outlines:
        """Of the n labels; asked for only where objects are to be pasted."""
        ...


def paint(
    source: ImageSource, parameters: PictureParameters, renderer: Renderer, output: NDArray[np.uint8]
) -> Objects:
    """Fill ``output``, (size, size, 3); returns the objects in it that are worth learning."""
    size = len(output)
    view = renderer.view(parameters.homography, canvas_side(len(parameters.sources), size), size)
    canvas = renderer.canvas(view, output)
    sizes = [source.size(index) for index in parameters.sources]
    tiles = lay_out(sizes, parameters.meeting, size, view)
    shown = []
    for place, (index, image_size, tile) in enumerate(zip(parameters.sources, sizes, tiles, strict=True)):
        if not tile.visible:
            continue
        # Objects to be pasted may be anywhere in it.
        rows = tile.down.last if parameters.pastes is None else image_size[0]
        if (image := source.image(index, rows)) is None:
            continue
        labels = source.labels(index)
        if parameters.pastes is not None:
            image, labels = paste_mirrored(image, labels, source.outlines(index), parameters.pastes, place)
        renderer.draw(canvas, image, tile)
        shown.append(_Shown(tile, image_size, labels))
    renderer.finish(canvas, [one.tile for one in shown], view, output)
    objects = _objects_in_view(shown)
    boxes, worth = output_boxes(objects.boxes_xyxy, view, size)
    return Objects(objects.classes, boxes).kept(worth)


@dataclass(frozen=True, eq=False)
class _Shown:
    """An image that shows: where, its height and width, and its labels (n, 5)."""

    tile: Tile
    size: tuple[int, int]
    labels: NDArray[np.float32]


def _objects_in_view(shown: Sequence[_Shown]) -> Objects:
    """All objects of the images, in pixels of the view."""
    if not shown:
        return Objects.joined([])
    counts = [len(one.labels) for one in shown]
    labels = np.concatenate([one.labels for one in shown])
    width_height = np.repeat([one.size[::-1] for one in shown], counts, axis=0)
    centre, sides = labels[:, 1:3].astype(np.float64), labels[:, 3:5].astype(np.float64)
    corners = np.concatenate(
        [(centre - sides / 2) * width_height, (centre + sides / 2) * width_height], axis=1
    )
    return Objects(labels[:, 0], place_boxes(corners, [one.tile for one in shown], counts))
