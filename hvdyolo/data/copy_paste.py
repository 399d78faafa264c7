"""Objects of an image once more, mirrored within it (simple copy-paste, arXiv 2012.07177).

Before the image is resampled into its place: the copies are sharp as their originals, and everything that
is done to pictures later finds more objects, and nothing else that is new.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hvdyolo.data.outlines import Outline, Outlines
from hvdyolo.data.parameters import PasteDraw

Pixels = NDArray[np.uint8]
Labels = NDArray[np.float32]

MOST_COVERED = 0.3
"""Share of a box under a pasted object's box from which the object is not pasted."""

_ROUNDING = 0.01  # pixels, of labels in single precision


def paste_mirrored(
    image: Pixels, labels: Labels, outlines: Outlines, draw: PasteDraw, place: int
) -> tuple[Pixels, Labels]:
    """An image (H, W, 3) and its labels (n, 5) with objects pasted; what is given stays as it is.

    Objects are tried in the order of their labels, against all boxes that there are by then. What is pasted
    is what ``image`` shows inside of the outline, without what was pasted there before.

    Args:
        outlines: of the labels.
        place: of the image in its picture; two of these have other random numbers, even of the same image.
    """
    generator = np.random.Generator(np.random.Philox(key=draw.seed, counter=place << 64))
    drawn = generator.random(len(labels)) < draw.probability
    height, width = image.shape[:2]
    pasted, boxes = image, _corners(labels)
    added = []
    for label, outline, box, wanted in zip(labels, outlines, boxes, drawn.tolist(), strict=True):
        mirrored = np.array([1 - box[2], box[1], 1 - box[0], box[3]])
        if not wanted or not outline or (covered(boxes, mirrored) >= MOST_COVERED).any():
            continue
        left, right = _span(box[0::2], width)
        top, bottom = _span(box[1::2], height)
        mask = fill(outline, (height, width), (left, top, right, bottom))
        if not mask.any():
            continue
        if pasted is image:
            pasted = image.copy()  # others may hold it
        target = pasted[top:bottom, width - right : width - left]
        np.copyto(target, image[top:bottom, left:right][:, ::-1], where=mask[:, ::-1, None])
        boxes = np.concatenate([boxes, mirrored[None]])
        added.append([label[0], 1 - label[1], *label[2:]])
    if not added:
        return image, labels
    return pasted, np.concatenate([labels, np.array(added, dtype=np.float32)])


def covered(boxes_xyxy: NDArray[np.floating], box_xyxy: NDArray[np.floating]) -> NDArray[np.floating]:
    """Share of the area of each box (n, 4) that is under another; (n,)."""
    least = np.maximum(boxes_xyxy[:, :2], box_xyxy[:2])
    most = np.minimum(boxes_xyxy[:, 2:], box_xyxy[2:])
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    shares: NDArray[np.floating] = ((most - least).clip(0) / sides).prod(1)
    return shares


def fill(outline: Outline, size: tuple[int, int], part: Sequence[int]) -> NDArray[np.bool_]:
    """The pixels of a part (left, top, right, bottom) of an image that an outline encloses or crosses.

    Args:
        size: height and width of the image.
    """
    left, top, right, bottom = part
    mask = Image.new("1", (right - left, bottom - top))
    canvas = ImageDraw.Draw(mask)
    for polygon in outline:
        # Pillow fills from the pixels of the corners on: these are the ones that the points lie in.
        corners = np.floor(polygon * size[::-1]) - (left, top)
        canvas.polygon(corners.ravel().tolist(), fill=1)
    return np.asarray(mask)


def _corners(labels: Labels) -> NDArray[np.float64]:
    """Boxes x1, y1, x2, y2 as fractions of the image."""
    centres, halves = labels[:, 1:3].astype(np.float64), labels[:, 3:5].astype(np.float64) / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def _span(ends: NDArray[np.floating], length: int) -> tuple[int, int]:
    """The pixels that an interval of fractions touches by more than rounding."""
    first, last = (ends * length).tolist()
    return max(0, math.floor(first + _ROUNDING)), min(length, math.ceil(last - _ROUNDING))
