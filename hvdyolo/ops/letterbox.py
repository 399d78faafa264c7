"""Fitting an image into a square without changing its shape."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

FILL = 114
"""Grey of the borders, 0..255."""


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in a square input, or in a rectangle cut from its middle, all in pixels.

    Attributes:
        size: side of the square.
        scale: input pixels an image pixel.
        pad_left, pad_top: border before the image; an odd pixel goes after it.
        resized_width, resized_height: the image within the square.
    """

    size: int
    scale: float
    pad_left: int
    pad_top: int
    resized_width: int
    resized_height: int

    def to_input(self, boxes_xyxy: Any) -> Any:
        """(…, 4) boxes in pixels of the image → pixels of the input; numpy or torch."""
        return boxes_xyxy * self.scale + self._offset(boxes_xyxy)

    def to_image(self, boxes_xyxy: Any) -> Any:
        """(…, 4) boxes in pixels of the input → pixels of the image; not clipped."""
        return (boxes_xyxy - self._offset(boxes_xyxy)) / self.scale

    def within(self, height: int, width: int) -> "Letterbox":
        """The same image, of the same size, centred in a rectangle."""
        return replace(
            self,
            pad_left=(width - self.resized_width) // 2,
            pad_top=(height - self.resized_height) // 2,
        )

    def _offset(self, like: Any) -> Any:
        offset = [self.pad_left, self.pad_top, self.pad_left, self.pad_top]
        return np.array(offset) if isinstance(like, np.ndarray) else like.new_tensor(offset)


@lru_cache(maxsize=1024)  # images have few sizes, and one of a mosaic is fitted twice
def fit_letterbox(height: int, width: int, size: int) -> Letterbox:
    """The largest centred fit of a ``height`` × ``width`` image into a square of ``size``."""
    scale = min(size / height, size / width)
    resized_width = max(round(width * scale), 1)
    resized_height = max(round(height * scale), 1)
    return Letterbox(
        size=size,
        scale=scale,
        pad_left=(size - resized_width) // 2,
        pad_top=(size - resized_height) // 2,
        resized_width=resized_width,
        resized_height=resized_height,
    )


def common_rectangle(letterboxes: Iterable[Letterbox], multiple: int) -> tuple[int, int]:
    """The smallest height and width, multiples of ``multiple``, that hold each of some resized images."""
    sizes = [(letterbox.resized_height, letterbox.resized_width) for letterbox in letterboxes]
    height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*sizes, strict=True))
    return height, width
