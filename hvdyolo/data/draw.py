"""Pictures with boxes and names, for people."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hvdyolo.data.images import Pixels
from hvdyolo.data.outlines import Outlines
from hvdyolo.utils.files import storage_errors

_LEAST_SIDE = 480  # smaller pictures are enlarged, or their text hides them
_GOLDEN = 0.61803398875  # consecutive classes get hues far apart


def draw_detections(
    image: Pixels,
    boxes_xyxy: NDArray[np.floating],
    labels: NDArray[np.int64],
    scores: NDArray[np.floating] | None,
    names: Sequence[str],
    path: Path,
) -> None:
    """Save ``image``, (H, W, 3) RGB, with its boxes.

    ``boxes_xyxy`` (n, 4) are in pixels, ``labels`` (n,) are class numbers, and ``scores`` (n,) are ``None``
    for true boxes.

    Raises:
        StorageError: it cannot be written.
    """
    picture = Image.fromarray(image)
    factor = max(1, -(-_LEAST_SIDE // max(image.shape[:2])))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    font = ImageFont.load_default(max(11, side // 55))
    line = max(2, side // 320)
    # The worst first, so that the best ones' names are on top.
    for place in range(len(labels))[::-1]:
        colour = _colour(int(labels[place]))
        x1, y1, x2, y2 = (float(value) * factor for value in boxes_xyxy[place])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line)
        text = names[int(labels[place])]
        if scores is not None:
            text += f" {scores[place]:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        height, width = bottom - top + 4, right - left + 6
        y = y1 - height if y1 >= height else y1
        x = min(max(x1, 0), picture.width - width)
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + 3 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)
    with storage_errors(path):
        picture.save(path)


def draw_outlines(image: Pixels, outlines: Outlines, labels: NDArray[np.int64]) -> Pixels:
    """A copy of ``image``, (H, W, 3) RGB, with the outlines of labels whose class numbers are ``labels``."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for outline, label in zip(outlines, labels.tolist(), strict=True):
        for polygon in outline:
            points = polygon[[*range(len(polygon)), 0]] * (width, height)
            draw.line(points.ravel().tolist(), fill=_colour(label))
    return np.asarray(picture)


def _colour(label: int) -> tuple[int, int, int]:
    """A bright colour of the class, on which black text is legible."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
