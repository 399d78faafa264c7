"""Pixels of packed samples."""

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.images import ImageTooLargeError, decode, decode_top
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.utils.errors import DataError


def read_pixels(
    split: PackedSplit, index: int, max_pixels: int, *, coarse: bool = False
) -> NDArray[np.uint8]:
    """Pixels of a sample, (H, W, 3), of the size that its record states.

    Args:
        coarse: as for :func:`hvdyolo.data.images.decode`.

    Raises:
        DamagedSampleError: its bytes are not those that were packed, or no image of that size.
        ImageTooLargeError: it is larger than ``max_pixels``, which is no damage.
    """
    return pixels_of(split.read(index), split, index, max_pixels, coarse=coarse)


def read_top(
    split: PackedSplit, index: int, max_pixels: int, rows: int, *, coarse: bool = False
) -> NDArray[np.uint8]:
    """As :func:`read_pixels`; rows from ``rows`` on may be missing: if possible they are not decoded."""
    encoded = split.read(index)
    if split.verifies:
        height, width = split.size(index)
        top = decode_top(encoded, max_pixels, (height, width), rows, coarse=coarse)
        if top is not None:
            return top
    return pixels_of(encoded, split, index, max_pixels, coarse=coarse)


def pixels_of(
    encoded: bytes | memoryview, split: PackedSplit, index: int, max_pixels: int, *, coarse: bool = False
) -> NDArray[np.uint8]:
    """As :func:`read_pixels`, of a sample that has been read."""
    try:
        image = decode(encoded, max_pixels, coarse=coarse)
    except ImageTooLargeError as error:
        raise ImageTooLargeError(
            f"{split.describe(index)} {error}; pack the data with --imgsz or raise loader.max_pixels."
        ) from error
    except DataError as error:
        raise DamagedSampleError(f"{split.describe(index)} {error}; pack the data again.") from error
    if image.shape[:2] != tuple(split.size(index)):
        height, width = image.shape[:2]
        raise DamagedSampleError(
            f"{split.describe(index)} has {width} x {height} pixels, but its record says "
            f"{split.size(index)[1]} x {split.size(index)[0]}; pack the data again."
        )
    return image
