"""What the operations of AutoAugment do, for a strength of 0 … 1.

Strengths mean what they mean in the code that the authors published with arXiv 1906.11172. Lengths were given
in pixels of a picture of 640, and are fractions of the picture here.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from hvdyolo.data.placement import Homography, Matrix, shift
from hvdyolo.ops.letterbox import FILL

Pixels = NDArray[np.uint8]

_SIZE = 640
_SHIFT, _SHIFT_IN_BOX = 250 / _SIZE, 120 / _SIZE
_CUTOUT, _CUTOUT_IN_BOX = 200 / _SIZE, 100 / _SIZE
_CUTOUT_OF_BOX = 0.75
_DEGREES = 30.0
_SHEAR = 0.3


def _factor(strength: float) -> float:
    """Of Pillow's enhancements: 1 changes nothing."""
    return 0.1 + 1.8 * strength


def _posterize(image: Image.Image, strength: float) -> Image.Image:
    # The policies ask for strengths of less than one bit.
    return ImageOps.posterize(image, max(1, int(4 * strength)))


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    """Brighten the darker half of values."""
    addition = int(110 * strength)
    table = [min(value + addition, 255) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


COLOURS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Posterize": _posterize,
    "Solarize": lambda image, strength: ImageOps.solarize(image, int(256 * strength)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, strength: ImageEnhance.Color(image).enhance(_factor(strength)),
    "Contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(_factor(strength)),
    "Brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(_factor(strength)),
    "Sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(_factor(strength)),
}


def _shear(across: float, down: float) -> Matrix:
    """About the upper left corner, as published."""
    return np.array([[1.0, across, 0.0], [down, 1.0, 0.0], [0.0, 0.0, 1.0]])


def _rotate(degrees: float, size: int) -> Matrix:
    turn = np.eye(3)
    turn[:2, :2] = Homography(rotation=degrees).turn
    about_middle: Matrix = shift(size / 2, size / 2) @ turn @ shift(-size / 2, -size / 2)
    return about_middle


Move = Callable[[float, int], Matrix]
"""Of a strength of -1 … 1 and the picture's size."""

MOVES: dict[str, Move] = {
    "TranslateX_BBox": lambda strength, size: shift(_SHIFT * strength * size, 0),
    "TranslateY_BBox": lambda strength, size: shift(0, _SHIFT * strength * size),
    "ShearX_BBox": lambda strength, _: _shear(_SHEAR * strength, 0),
    "ShearY_BBox": lambda strength, _: _shear(0, _SHEAR * strength),
    "Rotate_BBox": lambda strength, size: _rotate(_DEGREES * strength, size),
}

MOVES_IN_BOXES: dict[str, Move] = {
    "TranslateY_Only_BBoxes": lambda strength, size: shift(0, _SHIFT_IN_BOX * strength * size),
    "ShearX_Only_BBoxes": MOVES["ShearX_BBox"],
    "ShearY_Only_BBoxes": MOVES["ShearY_BBox"],
}


def cut_square(picture: Pixels, strength: float, generator: np.random.Generator) -> None:
    """Grey out a square around any point."""
    _cut_around_a_point(picture, _CUTOUT * strength * len(picture), generator)


def cut_square_in_box(inside: Pixels, size: int, strength: float, generator: np.random.Generator) -> None:
    """Grey out a square around any point of a box of a picture of some size."""
    _cut_around_a_point(inside, _CUTOUT_IN_BOX * strength * size, generator)


def cut_into_a_box(
    picture: Pixels, boxes_xyxy: NDArray[np.floating], strength: float, generator: np.random.Generator
) -> None:
    """Grey out a part of any box, of its shape and around a point in it."""
    if len(boxes_xyxy) == 0:
        return
    box = boxes_xyxy[generator.integers(len(boxes_xyxy))]
    sides = box[2:] - box[:2]
    _cut(picture, box[:2] + generator.random(2) * sides, _CUTOUT_OF_BOX * strength * sides)


def _cut_around_a_point(pixels: Pixels, side: float, generator: np.random.Generator) -> None:
    height, width = pixels.shape[:2]
    _cut(pixels, generator.random(2) * [width, height], np.array([side, side]))


def _cut(pixels: Pixels, centre: NDArray[np.floating], sides: NDArray[np.floating]) -> None:
    corners = np.concatenate([centre - sides / 2, centre + sides / 2])
    left, top, right, bottom = corners.round().astype(int).clip(0).tolist()
    pixels[top:bottom, left:right] = FILL
