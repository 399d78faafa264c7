"""Colours and mirror images of single pictures, by native/colours.c: for loader workers on CPUs."""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hvdyolo.ops.compiled import address_of_pixels, compiled

Pixels = NDArray[np.uint8]


def scale_colours(image: Pixels, gains: tuple[float, float, float]) -> None:
    """Multiply hue, saturation and value of (H, W, 3) RGB in place.

    As :func:`hvdyolo.ops.pixels.scale_hsv`, rounded to bytes; the same bytes on every processor.

    Args:
        gains: of the hue 0 … 2, of the others 0 or more.
    """
    _library().scale_colours(_address(image), image.shape[0] * image.shape[1], *gains)


def mirror(image: Pixels) -> None:
    """Reverse the rows of (H, W, 3) in place."""
    _library().mirror(_address(image), *image.shape[:2])


@cache
def _library() -> ctypes.CDLL:
    found = compiled("colours")
    assert found is not None
    address, count, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
    found.library.scale_colours.argtypes = (address, count, real, real, real)
    found.library.mirror.argtypes = (address, count, count)
    found.library.scale_colours.restype = found.library.mirror.restype = None
    return found.library


def _address(image: Pixels) -> int:
    assert image.flags.c_contiguous
    assert image.flags.writeable
    return address_of_pixels(image)
