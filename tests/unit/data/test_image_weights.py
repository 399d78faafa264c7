"""Weights of images by hand, and draws that follow them for any ranks, workers and starts."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data import image_weights
from hvdyolo.data.image_weights import PARTNERS, WeightedDraw, count_boxes, weigh_images
from hvdyolo.data.loader import TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.workers import start_worker_server

# Sample i has i % 4 boxes, of classes 0, 1, 2; that of class 1 is a crowd.
WEIGHTS = np.array([1.0, 10.0, 5.0])
OF_TEN = [0, 1, 1, 6, 0, 1, 1, 6, 0, 1]
AUGMENT = AugmentConfig(mosaic=0.7, mosaic_9=0.3, mixup=0.3)


@pytest.fixture
def split(packed) -> PackedSplit:
    return PackedSplit(packed(shards=2, each=5).root, "train")


def test_boxes_are_counted_and_images_weighed_without_crowds(split: PackedSplit) -> None:
    assert count_boxes(split).tolist() == [7, 0, 2]
    assert weigh_images(split, WEIGHTS).tolist() == OF_TEN


def draw(split: PackedSplit, seed: int = 0) -> WeightedDraw:
    return WeightedDraw(seed, weigh_images(split, WEIGHTS).cumsum())


def test_samples_and_partners_are_drawn_in_proportion(split: PackedSplit) -> None:
    drawn = draw(split)(3, range(3000))
    assert drawn.shape == (3000, 1 + PARTNERS)
    for column in (drawn[:, 0], drawn[:, 1:].ravel()):
        counts = Counter(column.tolist())
        for sample, weight in enumerate(OF_TEN):
            expected = weight / 17
            # Five standard deviations.
            spread = 5 * (expected * (1 - expected) / len(column)) ** 0.5
            assert counts[sample] / len(column) == pytest.approx(expected, abs=spread), sample


def test_a_position_of_an_epoch_has_its_draw_whoever_asks(split: PackedSplit) -> None:
    everything = draw(split)(3, range(40))
    np.testing.assert_array_equal(draw(split)(3, range(13, 29)), everything[13:29])
    assert not np.array_equal(draw(split)(4, range(40)), everything)
    assert not np.array_equal(draw(split, seed=1)(3, range(40)), everything)


def test_the_ends_of_the_range_are_samples_that_weigh_something(monkeypatch) -> None:
    class Ends:
        def random(self, count: int) -> np.ndarray:
            return np.resize([0.0, np.nextafter(1.0, 0.0), 1.0], count)

    monkeypatch.setattr(image_weights, "sample_generator", lambda *_: Ends())
    drawn = WeightedDraw(0, np.array([0, 0, 2, 5, 5.0]))(0, range(1))
    assert set(drawn[0].tolist()) == {2, 3}


class Stream:
    """Batches of images drawn by weight; of a stream all ranks together."""

    def __init__(self, split: PackedSplit) -> None:
        self.split = split
        self.plan = BatchPlan(len(split), 4, seed=5)
        self.asked: list[int] = []

    def _draw(self, epoch: int, positions: range) -> np.ndarray:
        self.asked.append(epoch)
        return draw(self.split, self.plan.seed)(epoch, positions)

    def loader(self, rank: int = 0, ranks: int = 1, workers: int = 0, start: int = 0) -> TrainLoader[None]:
        epoch, batch = divmod(start, self.plan.batches_per_epoch)
        return TrainLoader(
            self.split, self.plan, LoaderConfig(image_size=64, workers=workers), AUGMENT, assign_nothing,
            rank=rank, size=ranks, epochs=3, start_epoch=epoch, start_batch=batch, draw=self._draw,
        )  # fmt: skip

    def batches(self, ranks: int = 1, workers: int = 0, start: int = 0) -> list[list[Any]]:
        """Of each batch the sample, weight, pixels and labels of each slot."""
        shares = [self._share(self.loader(rank, ranks, workers, start)) for rank in range(ranks)]
        return [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]

    def _share(self, loader: TrainLoader[None]) -> Iterator[list[Any]]:
        with loader:
            for batch in loader:
                slots = zip(batch.samples, batch.weights.tolist(), batch.images, batch.labels, strict=True)
                yield [
                    (sample, weight, pixels.numpy().tobytes(), labels.tobytes())
                    for sample, weight, pixels, labels in slots
                ]


def assign_nothing(*_: Any) -> None:
    """Nobody learns here."""


def test_batches_are_the_same_for_any_ranks_workers_and_starts(split: PackedSplit) -> None:
    start_worker_server()  # else each worker would import torch for itself
    stream = Stream(split)
    whole = stream.batches()
    assert len(whole) == 9
    for ranks, workers, start in [(2, 0, 0), (3, 0, 4), (1, 2, 0), (1, 1, 7)]:
        assert stream.batches(ranks, workers, start) == whole[start:], (ranks, workers, start)
    for epoch in range(3):
        slots = [slot for batch in whole[3 * epoch : 3 * epoch + 3] for slot in batch]
        expected = draw(split, 5)(epoch, range(12))[:, 0].tolist()
        assert [sample for sample, *_ in slots] == expected
        # An epoch is as many draws as there are samples; the last two slots of twelve only fill the batch.
        assert [weight for _, weight, *_ in slots] == [1] * 10 + [0] * 2


def test_partners_are_those_that_are_drawn(split: PackedSplit) -> None:
    """Labels are of sample 1 or of its partners; of those that are tried only 7 has class 2."""

    def classes(partner: int) -> set[float]:
        stream = Stream(split)
        stream._draw = lambda _, positions: np.tile([1, partner, partner], (len(positions), 1))  # type: ignore[method-assign]
        with stream.loader() as loader:
            return {float(row[0]) for batch in loader for labels in batch.labels for row in labels}

    assert classes(5) == {0}
    assert classes(7) == {0, 2}


def test_no_more_is_drawn_ahead_than_an_epoch_must_be_long(packed: Callable[..., Any]) -> None:
    """Four batches an epoch are two of a step and two that are prefetched (engine/image_weighting.py)."""
    start_worker_server()
    stream = Stream(PackedSplit(packed(shards=2, each=8).root, "train"))
    assert stream.plan.batches_per_epoch == 4
    with stream.loader(workers=2) as loader:
        batches = iter(loader)
        for _ in range(4 + 2):
            next(batches)
        # Epoch 0 is over and evaluated when the first step of epoch 1 is loaded, and epoch 2 goes by that.
        assert max(stream.asked) == 1
        next(batches)
        assert max(stream.asked) == 2
