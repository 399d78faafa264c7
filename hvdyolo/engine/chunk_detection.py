"""From the names of images to their records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.images import ImageTooLargeError, open_image
from hvdyolo.engine.detector import Detector, ImageDetections, NetworkInput
from hvdyolo.engine.image_sources import BadImageError, ImageSource, StoredImage
from hvdyolo.engine.parts import Failed, Found, Record
from hvdyolo.utils.errors import DataError

# Finer than any detector is right, and short in a file.
_PIXEL_DECIMALS = 3
_SCORE_DECIMALS = 6


@dataclass(frozen=True)
class _Loaded:
    """An image ready for the network; ``height`` and ``width`` are what its boxes refer to."""

    image: str
    id: int
    input: NetworkInput
    height: int
    width: int


def detect_batch(
    detector: Detector, source: ImageSource, ids: Sequence[int], names: Sequence[str]
) -> list[Record]:
    """Records of images that are computed together, in their order.

    An image that cannot be used is recorded as such.

    Raises:
        StorageError: reading failed for a reason that has nothing to do with the image.
    """
    images = [_load(detector, source, index, name) for index, name in zip(ids, names, strict=True)]
    loaded = [image for image in images if isinstance(image, _Loaded)]
    found = iter(detector.detect([image.input for image in loaded]))
    return [_record(image, next(found)) if isinstance(image, _Loaded) else image for image in images]


def decode_stored(stored: StoredImage, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a stored image, upright.

    Raises:
        BadImageError: it cannot be decoded; never anything else, whatever the bytes.
    """
    if not stored.encoded:
        raise BadImageError("empty", "the file is empty")
    try:
        opened = open_image(stored.encoded, max_pixels)
    except ImageTooLargeError as error:
        raise BadImageError("too_large", str(error)) from error
    except DataError as error:
        raise BadImageError("not_an_image", str(error)) from error
    try:
        return opened.load(whole=False).pixels(upright=not stored.upright)
    except DataError as error:
        raise BadImageError("broken", str(error)) from error
    except MemoryError:
        raise  # says nothing about the image
    except Exception as error:
        # Decoders raise anything when fed anything, and one image must not end a job of millions. The
        # message may hold an address, which would differ from run to run.
        raise BadImageError("broken", type(error).__name__) from error


def _load(detector: Detector, source: ImageSource, index: int, name: str) -> _Loaded | Failed:
    try:
        stored = source.read(index, name)
        network_input = detector.fit(decode_stored(stored, detector.max_pixels))
    except BadImageError as error:
        return Failed(name, index, error.code, error.detail)
    height, width = stored.source_size or (network_input.height, network_input.width)
    return _Loaded(name, index, network_input, height, width)


def _record(image: _Loaded, found: ImageDetections) -> Found:
    scale = np.array([image.width / image.input.width, image.height / image.input.height] * 2)
    boxes = found.boxes_xyxy.astype(np.float64) * scale
    return Found(
        image=image.image,
        id=image.id,
        width=image.width,
        height=image.height,
        boxes_xyxy=boxes.round(_PIXEL_DECIMALS).tolist(),
        scores=found.scores.astype(np.float64).round(_SCORE_DECIMALS).tolist(),
        labels=found.labels.tolist(),
        capped=found.capped,
    )
