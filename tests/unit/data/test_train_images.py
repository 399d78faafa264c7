"""Photographs that training augments come at the network's size, as in evaluation."""

from pathlib import Path

import numpy as np

from hvdyolo.data.decoding import read_pixels
from hvdyolo.data.images import MOST_PIXELS, resize
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.train_part import _TrainImages
from hvdyolo.ops.letterbox import fit_letterbox


def test_large_ones_are_brought_to_it_by_the_rule_of_evaluation(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    images = _TrainImages(split, 96, MOST_PIXELS, "raise", None)
    for sample in range(8):
        fit = fit_letterbox(*split.size(sample), 96)
        assert images.size(sample) == (fit.resized_height, fit.resized_width)
        assert max(images.size(sample)) == 96 < max(split.size(sample))
        found = images.image(sample)
        expected = resize(read_pixels(split, sample, MOST_PIXELS), fit.resized_width, fit.resized_height)
        assert found is not None
        difference = np.abs(found.astype(int) - expected)
        assert (difference.max(), (difference > 0).mean() < 0.01) == (1, True)


def test_small_ones_stay_as_they_are(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    images = _TrainImages(split, 1024, MOST_PIXELS, "raise", None)
    assert images.size(0) == split.size(0)
    np.testing.assert_array_equal(images.image(0), read_pixels(split, 0, MOST_PIXELS))
