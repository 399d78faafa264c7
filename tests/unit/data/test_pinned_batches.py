"""Batches for a GPU lie in memory that it copies from on its own, and are the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.loader import TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit


def assign_nothing(*_: object) -> None:
    """The assignment is not looked at."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: memory is not pinned")
def test_batches_are_pinned_and_not_overwritten(packed: Callable[..., Any]) -> None:
    split = PackedSplit(packed(each=12).root, "train")

    def load(pinned: bool) -> list[torch.Tensor]:
        with TrainLoader(
            split, BatchPlan(12, 4, seed=0), LoaderConfig(image_size=64, workers=2), AugmentConfig(),
            assign_nothing, rank=0, size=1, epochs=3, pinned=pinned,
        ) as loader:  # fmt: skip
            batches = [batch.images for batch in loader]
        assert all(images.is_pinned() == pinned for images in batches)
        return [images.to("cuda", non_blocking=True) for images in batches]

    for found, expected in zip(load(pinned=True), load(pinned=False), strict=True):
        assert found.equal(expected)
