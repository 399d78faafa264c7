"""What OpenCV does for training samples where it is installed and asked for: several times as fast as others.

It is an extra. What a setting does must not depend on what happens to be installed, but for rounding, so
settings name it and :func:`require_opencv` refuses them without it.
"""

import importlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.placement import Matrix, shift
from hvdyolo.ops.letterbox import FILL
from hvdyolo.utils.errors import UsageError

Pixels = NDArray[np.uint8]

# OpenCV stores hue in steps of 2 degrees, to fit a byte.
_HUES = 180
# What is touched of an image at once, 500 KB with its planes, stays in a core's own cache.
_PIXELS_AT_ONCE = 80_000


def require_opencv(setting: str) -> None:
    """Refuse a setting that needs OpenCV where there is none.

    Raises:
        UsageError: says how to install it.
    """
    try:
        _opencv()
    except ImportError as error:
        raise UsageError(
            f"{setting} needs OpenCV, which cannot be imported ({error}): pip install 'hvdyolo[opencv]'."
        ) from None


def has_opencv() -> bool:
    """Whether it can be imported."""
    try:
        _opencv()
    except ImportError:
        return False
    return True


def resize_bilinear(image: Pixels, target: Pixels) -> None:
    """Fill ``target`` (h, w, 3) with ``image`` (H, W, 3), between the two nearest pixels each way."""
    if image.shape == target.shape:
        target[...] = image
        return
    height, width = target.shape[:2]
    _opencv().resize(image, (width, height), dst=target)


def warp_bilinear(image: Pixels, to_target: Matrix, target: Pixels) -> None:
    """Fill ``target`` (h, w, 3) with ``image`` under a matrix, grey where there is nothing.

    For ``to_target`` pixel i covers i … i + 1; OpenCV has its centre at i.
    """
    cv2 = _opencv()
    centred = shift(-0.5, -0.5) @ to_target @ shift(0.5, 0.5)
    height, width = target.shape[:2]
    grey = {"dst": target, "borderValue": (FILL, FILL, FILL)}
    if to_target[2, :2].any():
        cv2.warpPerspective(image, centred, (width, height), **grey)
    else:
        cv2.warpAffine(image, centred[:2], (width, height), **grey)


def scale_colours(image: Pixels, gains: tuple[float, float, float]) -> None:
    """Multiply hue, saturation and value of (H, W, 3) RGB in place, in steps of a byte.

    Some rows at a time, all in the same few pages: of a whole image the planes are new memory, whose pages
    cost as much as the work.
    """
    cv2 = _opencv()
    hue, saturation, value = gains
    # Rounded: cut off, as usual, all hues would be a degree less on average.
    turned = (np.rint(np.arange(256) * hue) % _HUES).astype(np.uint8)
    height, width = image.shape[:2]
    rows = max(1, min(_PIXELS_AT_ONCE // width, height))
    converted = np.empty((rows, width, 3), dtype=np.uint8)
    planes = [np.empty((rows, width), dtype=np.uint8) for _ in gains]
    for top in range(0, height, rows):
        block = image[top : top + rows]
        hsv, parts = converted[: len(block)], [plane[: len(block)] for plane in planes]
        cv2.cvtColor(block, cv2.COLOR_RGB2HSV, dst=hsv)
        cv2.split(hsv, parts)
        cv2.LUT(parts[0], turned, dst=parts[0])
        # A third of the time of a table, which arithmetic on whole vectors beats.
        cv2.convertScaleAbs(parts[1], dst=parts[1], alpha=saturation)
        cv2.convertScaleAbs(parts[2], dst=parts[2], alpha=value)
        cv2.merge(parts, dst=hsv)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=block)


def mirror(image: Pixels) -> None:
    """Reverse the rows of (H, W, 3) in place."""
    _opencv().flip(image, 1, dst=image)


@cache
def _opencv() -> Any:
    """The module, imported when first needed: a fifth of a second that most jobs do not need."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)  # loader workers are many
    return cv2
