"""Resizing for the network, in training, evaluation and detection alike."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from hvdyolo.ops.letterbox import FILL, Letterbox

Pixels = NDArray[np.uint8]


def resize_triangle(image: Pixels, target: Pixels) -> None:
    """The pixels of Pillow's bilinear resize; one in a hundred is 1 off when enlarged, fewer when shrunk.

    The same anti-aliased triangle filter in 8-bit arithmetic, in a quarter of the time.
    """
    if image.shape == target.shape:
        target[...] = image
        return
    # For channels that lie side by side torch has a kernel two to three times as fast as that for planes. It
    # looks at all strides, the batch's too, though that is a single image: this order of the two sets it.
    batch = torch.from_numpy(_own(image))[None].permute(0, 3, 1, 2)
    resized = interpolate(batch, target.shape[:2], mode="bilinear", antialias=True)
    torch.from_numpy(target).copy_(resized[0].permute(1, 2, 0))


def _own(image: Pixels) -> Pixels:
    """Contiguous and writable: torch warns of arrays that are not, and takes longer for parts of rows."""
    return np.require(image, requirements=("C", "W"))


def letterbox_image(image: Pixels, letterbox: Letterbox) -> Pixels:
    """(H, W, 3) → (size, size, 3): resized, centred, on grey."""
    square = np.full((letterbox.size, letterbox.size, 3), FILL, dtype=np.uint8)
    letterbox_into(square, image, letterbox)
    return square


def letterbox_into(square: Pixels, image: Pixels, letterbox: Letterbox) -> None:
    """Draw an image into a grey square, or rectangle, as :func:`letterbox_image` does."""
    rows = slice(letterbox.pad_top, letterbox.pad_top + letterbox.resized_height)
    columns = slice(letterbox.pad_left, letterbox.pad_left + letterbox.resized_width)
    resize_triangle(image, square[rows, columns])
