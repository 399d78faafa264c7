"""Augmented training samples: mosaic, affine, colour and mirror image.

The method is the published one: four images on a canvas of twice the size around a random centre,
then zoom, shift, rotation and shear of that canvas, cut to the output. But the whole canvas is never
made, images that do not show are not decoded, and each is resampled as :mod:`hvdyolo.data.render`
says: by default once, from its own pixels into its visible rectangle of the output, with a second,
bilinear step only for rotation and shear.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvdyolo.config import AugmentConfig
from hvdyolo.data.placement import (
    Affine,
    Tile,
    View,
    letterbox_tile,
    mosaic_tiles,
    output_boxes,
    place_boxes,
)
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


class Partners(Protocol):
    """The samples that a mosaic takes its other three from."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> int:
        """A sample."""
        ...


@dataclass(frozen=True)
class AugmentParameters:
    """All that is random about a sample."""

    sources: tuple[int, ...]
    """One sample, or the four of a mosaic: top left, top right, bottom left, bottom right."""
    meeting_x: float
    """Where the four meet, as a fraction of the output size: 0.5 … 1.5."""
    meeting_y: float
    affine: Affine
    colour_gains: tuple[float, float, float]
    """Factors of hue, saturation and value."""
    flip: bool
    """Mirror left and right."""


@dataclass(frozen=True)
class AugmentedSample:
    """A sample whose pixels are still to be coloured and mirrored."""

    image: NDArray[np.uint8]
    """(size, size, 3) RGB, not mirrored."""
    labels: NDArray[np.float32]
    """(n, 5): class, cx, cy, w, h in 0..1 of the output, mirrored if `flip`."""
    colour_gains: tuple[float, float, float]
    """Factors of hue, saturation and value."""
    flip: bool


def draw_parameters(
    settings: AugmentConfig, sample: int, partners: Partners, generator: np.random.Generator
) -> AugmentParameters:
    """Parameters of one sample.

    All numbers are drawn at once and each has its place, so that changing one setting changes
    nothing else.
    """
    draws = generator.random(17).tolist()
    mosaic, meeting_x, meeting_y, *chosen, place = draws[:7]
    rotation, zoom, shear_x, shear_y, centre_x, centre_y = (2 * u - 1 for u in draws[7:13])
    hue, saturation, value = (2 * u - 1 for u in draws[13:16])
    if mosaic < settings.mosaic:
        others = [partners[int(u * len(partners))] for u in chosen]
        others.insert(int(place * 4), sample)
        sources = tuple(others)
    else:
        sources = (sample,)
    return AugmentParameters(
        sources=sources,
        meeting_x=0.5 + meeting_x,
        meeting_y=0.5 + meeting_y,
        affine=Affine(
            zoom=1 + zoom * settings.scale,
            rotation=rotation * settings.degrees,
            shear_x=shear_x * settings.shear,
            shear_y=shear_y * settings.shear,
            centre_x=0.5 + centre_x * settings.translate,
            centre_y=0.5 + centre_y * settings.translate,
        ),
        colour_gains=(
            1 + hue * settings.hue,
            1 + saturation * settings.saturation,
            1 + value * settings.value,
        ),
        flip=draws[16] < settings.flip_left_right,
    )


def augment(
    source: ImageSource, parameters: AugmentParameters, renderer: Renderer, output: NDArray[np.uint8]
) -> AugmentedSample:
    """The sample that the parameters describe; its pixels fill ``output``, (size, size, 3)."""
    size = len(output)
    view = renderer.view(parameters.affine, size)
    canvas = renderer.canvas(view, output)
    classes, boxes = [], []
    for index, tile in zip(parameters.sources, _tiles(source, parameters, size, view), strict=True):
        if not tile.visible or (image := source.image(index)) is None:
            continue
        renderer.draw(canvas, image, tile)
        labels = source.labels(index)
        classes.append(labels[:, 0])
        boxes.append(place_boxes(_corners(labels, source.size(index)), tile))
    renderer.finish(canvas, view, output)
    return AugmentedSample(
        image=output,
        labels=_output_labels(classes, boxes, view, size, parameters.flip),
        colour_gains=parameters.colour_gains,
        flip=parameters.flip,
    )


def _tiles(source: ImageSource, parameters: AugmentParameters, size: int, view: View) -> list[Tile]:
    sizes = [source.size(index) for index in parameters.sources]
    if len(sizes) == 1:
        return [letterbox_tile(*sizes[0], size, view)]
    meeting = int(parameters.meeting_x * size), int(parameters.meeting_y * size)
    return mosaic_tiles(sizes, *meeting, size, view)


def _corners(labels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Labels (n, 5) to boxes x1, y1, x2, y2 in pixels of an image of that height and width."""
    height, width = size
    centre, sides = labels[:, 1:3].astype(np.float64), labels[:, 3:5].astype(np.float64)
    corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    pixels: NDArray[np.float64] = corners * np.array([width, height, width, height])
    return pixels


def _output_labels(
    classes: Sequence[NDArray[np.float32]],
    placed: Sequence[NDArray[np.floating]],
    view: View,
    size: int,
    flip: bool,
) -> NDArray[np.float32]:
    if not placed:
        return np.empty((0, 5), dtype=np.float32)
    boxes, kept = output_boxes(np.concatenate(placed), view, size)
    boxes = boxes[kept] / size
    labels = np.empty((len(boxes), 5), dtype=np.float32)
    labels[:, 0] = np.concatenate(classes)[kept]
    labels[:, 1:3] = (boxes[:, :2] + boxes[:, 2:]) / 2
    labels[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
    if flip:
        labels[:, 1] = 1 - labels[:, 1]
    return labels
