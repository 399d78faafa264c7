"""The only place that decodes and encodes images; without torch, for whose import packing would wait."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hvdyolo.data.jpeg_damage import loses_pixels, without_notes
from hvdyolo.data.jpeg_top import first_rows
from hvdyolo.utils.errors import DataError

Pixels = NDArray[np.uint8]

RESAMPLING = "triangle"
"""Name of the rule of :func:`resize`, as packed data and weights record it."""

MOST_PIXELS = 178_956_970
"""Pillow refuses larger images by itself, whatever a setting says."""

UPRIGHT = 1
"""The EXIF orientation of an image that is stored as one sees it."""

_JPEG_START = b"\xff\xd8\xff"
_ICON_START = b"\0\0\1\0"
# Of JPEGs whose pixels both decoders give alike. Inks (CMYK, YCCK) are turned into colours differently.
_FAST_COLOURS = ("YCbCr", "Gray")
_INKS = ("CMYK", "YCCK")
# At an eighth of its size a JPEG is decoded sooner, and found damaged exactly if it is at full size: damage
# shows in markers and in entropy-coded data, of which every bit is read for any size. What is saved are
# transforms and colours, which cannot fail.
_AN_EIGHTH = {"min_height": 1, "min_width": 1, "min_factor": 8}
_ORIENTATION = 0x0112  # EXIF tag
# What libjpeg calls fast: products of 16 bits in the inverse transform, and a colour that stands for two by
# two pixels repeated instead of interpolated.
_COARSE = {"fastdct": True, "fastupsample": True}
# The last of the rows that are decoded may differ from what it is beside the next one.
_ROWS_BEYOND = 2


class ImageTooLargeError(DataError):
    """The header of an image announces more pixels than are allowed."""


class DamagedImageError(DataError):
    """An image can be decoded, but the decoder had to make some of its pixels up."""


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

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height once turned as the orientation says."""
        turned = self.exif_orientation in (5, 6, 7, 8)
        return (self.height, self.width) if turned else (self.width, self.height)


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image that becomes an array when asked: an image that keeps its bytes never needs to."""

    header: ImageHeader
    _decoded: Pixels | Image.Image

    def pixels(self, *, upright: bool) -> Pixels:
        """(H, W, 3) RGB, turned as the EXIF orientation says if ``upright``."""
        if not isinstance(self._decoded, Image.Image):
            return self._decoded  # upright already
        if upright and self.header.exif_orientation != UPRIGHT:
            return _rgb(ImageOps.exif_transpose(self._decoded))
        return _rgb(self._decoded)


@dataclass(frozen=True)
class OpenedImage:
    """An image of which the header has been read."""

    header: ImageHeader
    _encoded: bytes
    _image: Image.Image
    _max_pixels: int

    def check(self) -> None:
        """Find out whether it is whole, in half the time of :meth:`load` for most JPEGs.

        Raises:
            DamagedImageError: pixels are lost.
            DataError: it cannot be decoded at all.
        """
        if _decode_fast(self._encoded, self._max_pixels, **_AN_EIGHTH) is None:
            _load(self._image)
            _refuse_damage(self._encoded, self._max_pixels)

    def load(self, *, whole: bool) -> LoadedImage:
        """Decode it.

        Args:
            whole: refuse it where :meth:`check` would; otherwise lost pixels of a JPEG are grey, or whatever
                the decoder makes of what is there.

        Raises:
            DamagedImageError: pixels are lost.
            DataError: it cannot be decoded at all.
        """
        if self.header.exif_orientation == UPRIGHT:
            fast = _decode_fast(self._encoded, self._max_pixels)
            if fast is not None:
                return LoadedImage(self.header, fast)
        _load(self._image)
        if whole:
            _refuse_damage(self._encoded, self._max_pixels)
        return LoadedImage(self.header, self._image)


def open_image(encoded: bytes, max_pixels: int) -> OpenedImage:
    """Read the header of an encoded image.

    The orientation of a PNG may be told after its pixels. Where none is told before, they are decoded here
    already, and not again by :meth:`OpenedImage.load`.

    Raises:
        DataError: it is no image that Pillow knows.
        ImageTooLargeError: it has more than ``max_pixels``, which is told before anything is decoded.
    """
    image = _open(encoded, max_pixels)
    return OpenedImage(_header(image), encoded, image, max_pixels)


def decode(encoded: bytes | memoryview, max_pixels: int, *, coarse: bool = False) -> Pixels:
    """(H, W, 3) RGB of an encoded image, as stored: EXIF orientation was dealt with at packing.

    JPEGs, nearly all there is, go to simplejpeg: the same bits as Pillow's, 1.3 to 2 times as fast, because
    it decodes into the array that is handed out.

    Args:
        coarse: these in less time, 1.2 of 255 off on average and more at the edges of colours.

    Raises:
        DataError, ImageTooLargeError: as :func:`open_image` and :meth:`OpenedImage.load`.
    """
    fast = _decode_fast(encoded, max_pixels, **(_COARSE if coarse else {}))
    if fast is not None:
        return fast
    image = _open(encoded, max_pixels)
    _load(image)
    return _rgb(image)


def decode_top(
    encoded: bytes | memoryview, max_pixels: int, size: tuple[int, int], rows: int, *, coarse: bool = False
) -> Pixels | None:
    """The first ``rows`` rows of what :func:`decode` gives, or some more, in the time that they take.

    Damage is not seen: for bytes whose checksum is known to be right. ``None``: it is no ordinary JPEG, has
    not the height and width that ``size`` says, or is needed as a whole.
    """
    if rows + _ROWS_BEYOND >= size[0] or _size_of_fast(encoded, max_pixels) != size:
        return None
    top = first_rows(encoded, rows + _ROWS_BEYOND)
    if top is None:
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(top, "RGB", strict=False, **(_COARSE if coarse else {}))
    except ValueError:
        return None
    return pixels


def decode_upright(encoded: bytes, max_pixels: int) -> Pixels:
    """Like :func:`decode`, turned as its EXIF orientation says: for images that were not packed."""
    return open_image(encoded, max_pixels).load(whole=False).pixels(upright=True)


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Resample by the one rule of the project: bilinear with a support that grows when shrinking.

    :func:`hvdyolo.data.resizing.resize_triangle` does the same by torch, in a quarter of the time.
    """
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def encode_jpeg(image: Pixels, quality: int = 95) -> bytes:
    """Encode (H, W, 3) RGB as a JPEG without colour subsampling."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _decode_fast(encoded: bytes | memoryview, max_pixels: int, **how: int) -> Pixels | None:
    """The pixels of an ordinary, undamaged JPEG; ``None``: everything else, and every error, is Pillow's.

    ``how``: settings of simplejpeg.
    """
    if _size_of_fast(encoded, max_pixels) is None:
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB", **how)
    except ValueError:
        return None
    return pixels


def _size_of_fast(encoded: bytes | memoryview, max_pixels: int) -> tuple[int, int] | None:
    """Height and width of an image that the fast decoder is for."""
    if encoded[: len(_JPEG_START)] != _JPEG_START:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if colours not in _FAST_COLOURS or height * width > min(max_pixels, MOST_PIXELS):
        return None
    return height, width


def _refuse_damage(encoded: bytes, max_pixels: int) -> None:
    """Raise a :class:`DamagedImageError` for a JPEG of which libjpeg says that pixels are lost."""
    if not encoded.startswith(_JPEG_START):
        return
    bare = without_notes(encoded)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(bare, strict=False)
    except ValueError:
        return
    if height * width > max_pixels:
        return
    to = "CMYK" if colours in _INKS else "RGB"
    try:
        simplejpeg.decode_jpeg(bare, to, **_AN_EIGHTH)
    except ValueError as error:
        warning = str(error)
    else:
        return
    if not loses_pixels(warning):
        return
    try:
        simplejpeg.decode_jpeg(bare, to, strict=False, **_AN_EIGHTH)
    except ValueError:
        return  # no warning: a kind that only Pillow decodes
    raise DamagedImageError(f"is damaged: {warning}")


def _open(encoded: bytes | memoryview, max_pixels: int) -> Image.Image:
    if encoded[: len(_ICON_START)] == _ICON_START:
        raise DataError("is an icon, which Pillow decodes to know its size; convert it")
    try:
        image = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise DataError("is not an image") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"is refused: {error}") from None
    except MemoryError:
        raise  # says nothing about the image
    except Exception as error:  # decoders that are fed damaged bytes raise anything
        raise DataError(f"cannot be read: {_reason(error)}") from None
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"has {image.width} x {image.height} pixels, more than the limit of {max_pixels}"
        )
    return image


def _load(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise DataError("has pixels of 32 bits, and nothing says which of them is white; convert it")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"cannot be decoded: {_reason(error)}") from None


def _header(image: Image.Image) -> ImageHeader:
    try:
        orientation = int(image.getexif().get(_ORIENTATION, UPRIGHT))
    except MemoryError:
        raise  # says nothing about the image
    except Exception:
        orientation = UPRIGHT  # damaged EXIF data is not the image
    if not 1 <= orientation <= 8:
        orientation = UPRIGHT
    return ImageHeader(image.width, image.height, image.format or "", orientation)


def _rgb(image: Image.Image) -> Pixels:
    """Pixels of a loaded image; transparency is dropped, 16-bit greys keep their upper 8 bits."""
    if image.mode == "RGB":
        return np.asarray(image)  # convert would copy once more
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")  # otherwise Pillow warns for some palettes
    return np.asarray(image.convert("RGB"))


def _reason(error: Exception) -> str:
    """A short cause without addresses, which would differ from run to run."""
    text = str(error)
    return text if text and "0x" not in text else type(error).__name__
