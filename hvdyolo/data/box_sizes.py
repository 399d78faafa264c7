"""Sizes of a split's boxes as the network sees them, read without decoding an image."""

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.format import CROWD
from hvdyolo.data.permutation import permute, round_keys
from hvdyolo.data.placement import LEAST_SIDE
from hvdyolo.data.reader import PackedSplit


def draw_box_sizes(
    split: PackedSplit, samples: range, image_size: int, most: int, seed: int
) -> NDArray[np.float32]:
    """(n, 2) widths and heights, in pixels of an input of ``image_size``, of boxes of ``samples``.

    Crowds are left out, and boxes too small for augmentation to keep. Of a split with more than ``most``
    boxes this draws as many from the whole split, and gives those of ``samples``: shares of a split, joined
    in order, are the draw from all of it.
    """
    total = split.boxes
    parts = [np.zeros((0, 2), dtype=np.float32)]
    for columns in split.columns(samples):
        owners = columns.owners
        heights, widths = columns.heights.astype(np.float32), columns.widths.astype(np.float32)
        scales = image_size / np.maximum(heights, widths)
        pixels = np.stack([widths * scales, heights * scales], 1)[owners] * columns.labels[:, 3:5]
        taken = (pixels > LEAST_SIDE).all(1) & (columns.flags & CROWD == 0)
        if total > most:
            numbers = columns.first_box + np.arange(len(owners), dtype=np.int64)
            taken &= permute(numbers, total, round_keys(b"hvdyolo anchors", seed)) < most
        parts.append(pixels[taken])
    return np.concatenate(parts)
