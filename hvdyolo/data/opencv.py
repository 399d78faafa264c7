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


@cache
def _opencv() -> Any:
    """The module, imported when first needed: a fifth of a second that most jobs do not need."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)  # loader workers are many
    return cv2
