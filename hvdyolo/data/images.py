"""The only place that decodes, resizes and encodes images."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hvdyolo.ops.letterbox import FILL, Letterbox
from hvdyolo.utils.errors import DataError

Pixels = NDArray[np.uint8]

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = 1
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageHeader:
    """What an image says about itself before it is decoded.

    Attributes:
        width, height: as stored, before EXIF orientation.
        format: Pillow's name, such as JPEG.
        exif_orientation: 1 is upright.
    """

    width: int
    height: int
    format: str
    exif_orientation: int


def read_header(encoded: bytes) -> ImageHeader:
    """The header of an encoded image.

    Raises:
        DataError: it is no image that Pillow knows.
    """
    with _open(encoded) as image:
        try:
            orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
        except _FAILURES:
            orientation = _UPRIGHT  # unreadable EXIF data is not the image
        return ImageHeader(image.width, image.height, image.format or "", int(orientation))


def decode(encoded: bytes, max_pixels: int) -> Pixels:
    """(H, W, 3) RGB of an encoded image, as stored: EXIF orientation was dealt with at packing.

    Raises:
        DataError: it is damaged, no image, or has more than ``max_pixels`` (told by its header).
    """
    with _open(encoded) as image:
        if image.width * image.height > max_pixels:
            raise DataError(f"has {image.width} x {image.height} pixels, more than the limit of {max_pixels}")
        try:
            return np.asarray(image.convert("RGB"))
        except _FAILURES as error:
            raise DataError(f"cannot be decoded: {error}") from None


def decode_upright(encoded: bytes, max_pixels: int) -> Pixels:
    """Like :func:`decode`, turned as its EXIF orientation says: for images that were not packed."""
    pixels = decode(encoded, max_pixels)
    if read_header(encoded).exif_orientation == _UPRIGHT:
        return pixels
    with _open(encoded) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Resample by the one rule of the project: bilinear with a support that grows when shrinking."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def letterbox_image(image: Pixels, letterbox: Letterbox) -> Pixels:
    """(H, W, 3) → (size, size, 3): resized, centred, on grey."""
    square = np.full((letterbox.size, letterbox.size, 3), FILL, dtype=np.uint8)
    rows = slice(letterbox.pad_top, letterbox.pad_top + letterbox.resized_height)
    columns = slice(letterbox.pad_left, letterbox.pad_left + letterbox.resized_width)
    square[rows, columns] = resize(image, letterbox.resized_width, letterbox.resized_height)
    return square


def encode_jpeg(image: Pixels, quality: int = 95) -> bytes:
    """Encode (H, W, 3) RGB as a JPEG without colour subsampling."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise DataError("is not an image") from None
    except _FAILURES as error:
        raise DataError(f"cannot be read: {error}") from None
