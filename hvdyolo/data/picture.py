"""One image, or a mosaic, under a homography: pixels and objects.

The whole canvas is never made, images that do not show are not decoded, and each is resampled as
:mod:`hvdyolo.data.render` says: by default once, from its own pixels into its visible rectangle of the
output, with a second, bilinear step only for rotation, shear and perspective.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.copy_paste import paste_mirrored
from hvdyolo.data.layout import canvas_side, lay_out
from hvdyolo.data.objects import Objects
from hvdyolo.data.outlines import Outlines
from hvdyolo.data.parameters import PictureParameters
from hvdyolo.data.placement import output_boxes, place_boxes
from hvdyolo.data.render import Renderer


class ImageSource(Protocol):
    """The images and labels of a split."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, without decoding."""
        ...

    def image(self, index: int) -> NDArray[np.uint8] | None:
        """Pixels, (H, W, 3) RGB; ``None`` leaves its place grey and without labels."""
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
    tiles = lay_out([source.size(index) for index in parameters.sources], parameters.meeting, size, view)
    placed = []
    for place, (index, tile) in enumerate(zip(parameters.sources, tiles, strict=True)):
        if not tile.visible or (image := source.image(index)) is None:
            continue
        labels = source.labels(index)
        if parameters.pastes is not None:
            image, labels = paste_mirrored(image, labels, source.outlines(index), parameters.pastes, place)
        renderer.draw(canvas, image, tile)
        placed.append(Objects(labels[:, 0], place_boxes(_corners(labels, source.size(index)), tile)))
    renderer.finish(canvas, view, output)
    objects = Objects.joined(placed)
    boxes, worth = output_boxes(objects.boxes_xyxy, view, size)
    return Objects(objects.classes, boxes).kept(worth)


def _corners(labels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Labels (n, 5) to boxes x1, y1, x2, y2 in pixels of an image of that height and width."""
    height, width = size
    centre, sides = labels[:, 1:3].astype(np.float64), labels[:, 3:5].astype(np.float64)
    corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    pixels: NDArray[np.float64] = corners * np.array([width, height, width, height])
    return pixels
