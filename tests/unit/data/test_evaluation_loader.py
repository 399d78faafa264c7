"""Batches for evaluation hold what the samples are, each where its turn is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hvdyolo.config import LoaderConfig
from hvdyolo.data.evaluation_loader import EvaluationLoader
from hvdyolo.data.images import MOST_PIXELS, decode
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.resizing import letterbox_image
from hvdyolo.ops.letterbox import fit_letterbox


@pytest.mark.parametrize(
    ("image_size", "rank", "size", "workers"), [(96, 0, 1, 0), (640, 0, 1, 0), (96, 1, 3, 0), (96, 0, 1, 2)]
)
def test_a_batch_is_the_letterboxed_samples_and_their_labels(
    synthetic: Path, image_size: int, rank: int, size: int, workers: int
) -> None:
    split = PackedSplit(synthetic, "val")
    loader = EvaluationLoader(
        split, LoaderConfig(workers=workers), image_size=image_size, batch=5, rank=rank, size=size
    )
    samples = []
    # All are kept while the workers go on.
    for batch in list(loader):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch.samples), image_size, image_size, 3)
        for place, sample in enumerate(batch.samples):
            letterbox = fit_letterbox(*split.size(sample), image_size)
            expected = letterbox_image(decode(split.read(sample), MOST_PIXELS), letterbox)
            np.testing.assert_array_equal(batch.images[place].numpy(), expected)
            assert batch.letterboxes[place] == letterbox
            np.testing.assert_array_equal(batch.labels[place], split.labels(sample))
            np.testing.assert_array_equal(batch.flags[place], split.flags(sample))
        samples += batch.samples
    assert samples == list(range(rank, len(split), size))
