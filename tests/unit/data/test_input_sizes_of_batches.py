"""A batch of another input size: the same images, and what cells learn at that size."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.objective.assign import Assigner

ASSIGN = Assigner((8, 16, 32), np.full((3, 3, 2), 16, dtype=np.float32), 4.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_are_assigned_at_the_size_of_the_batch(packed: Callable[..., Any], workers: int) -> None:
    split = PackedSplit(packed(each=12).root, "train")
    sizes = {(0, 0): 96, (0, 1): 64, (0, 2): 32, (1, 0): 64, (1, 1): 32, (1, 2): 96}

    def load(**options: Any) -> list[TrainBatch[Any]]:
        with TrainLoader(
            split,
            BatchPlan(12, 4, seed=0),
            LoaderConfig(image_size=64, workers=workers),
            AugmentConfig(),
            ASSIGN,
            rank=0,
            size=1,
            epochs=2,
            **options,
        ) as loader:
            return list(loader)

    several, plain = load(input_size=lambda epoch, batch: sizes[epoch, batch]), load()
    assert [batch.input_size for batch in several] == list(sizes.values())
    assert {batch.input_size for batch in plain} == {64}
    matched = 0
    for batch, other in zip(several, plain, strict=True):
        assert batch.images.shape == (4, 64, 64, 3)
        assert batch.images.equal(other.images)
        expected = ASSIGN(batch.labels, batch.input_size, batch.input_size, 0)
        for level in range(3):
            cells = np.concatenate([part[level].cell for part in batch.matches])
            sizes_in_cells = np.concatenate([part[level].box_cxcywh for part in batch.matches])
            np.testing.assert_array_equal(np.sort(cells), np.sort(expected[level].cell))
            assert sizes_in_cells.sum() == pytest.approx(expected[level].box_cxcywh.sum(), rel=1e-5)
            matched += len(cells)
    assert matched > 20
