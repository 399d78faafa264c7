"""Multi-scale: one size a step, for all its batches and whatever comes before."""

from collections import Counter
from itertools import pairwise

import pytest

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.feed import CellCounts
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.schedule import StepRange, TrainingSchedule

# Accumulation ramps from 1 to 4 batches over 25 batches, in an epoch of 21.
RAMPING = TrainingSchedule(OptimizerConfig(warmup_min_batches=25, warmup_epochs=0.1), 9, batches=21, batch=16)


def sizes(**changes) -> InputSizes:
    values = {"schedule": RAMPING, "seed": 3, "image_size": 640, "stride": 32, "fraction": 0.5}
    return InputSizes(**(values | changes))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_batch_finds_its_step(epoch: int) -> None:
    found = [RAMPING.step_at(epoch, batch) for batch in range(21)]
    expected = [step for step in RAMPING.steps(epoch) for _ in range(step.passes)]
    assert found == expected
    assert len({step.passes for step in expected}) > 1  # or the test shows nothing
    assert found[20] == StepRange(epoch, expected[-1].first, 21 - expected[-1].first)


def test_all_batches_of_a_step_have_one_size_and_steps_differ() -> None:
    several = sizes()
    by_step = []
    for epoch in range(9):
        for step in RAMPING.steps(epoch):
            found = {several.at(epoch, step.first + batch) for batch in range(step.passes)}
            assert len(found) == 1
            by_step.append(found.pop())
    assert len(set(by_step)) > 10
    assert sum(first == second for first, second in pairwise(by_step)) < len(by_step) / 4


def test_sizes_are_multiples_of_the_stride_in_range_and_equally_likely() -> None:
    assert sizes().choices == list(range(320, 961, 32))
    assert sizes(stride=64).choices == list(range(320, 961, 64))
    assert sizes(fraction=0.1).choices == [576, 608, 640, 672, 704]
    assert sizes(image_size=32).choices == [32]
    schedule = TrainingSchedule(OptimizerConfig(warmup_epochs=0), 1, batches=3000, batch=64)
    counts = Counter(sizes(schedule=schedule, fraction=0.1).at(0, batch) for batch in range(3000))
    assert sorted(counts) == [576, 608, 640, 672, 704]
    assert all(500 < count < 700 for count in counts.values())


def test_without_it_there_is_one_size() -> None:
    assert sizes(fraction=0.0).choices == [640]
    assert {sizes(fraction=0.0).at(0, batch) for batch in range(21)} == {640}


def test_a_size_depends_on_seed_and_step_alone() -> None:
    # Asked in any order, by anyone.
    first = [sizes().at(epoch, batch) for epoch in range(3) for batch in range(21)]
    second = [sizes().at(epoch, batch) for epoch in (2, 1, 0) for batch in reversed(range(21))]
    assert second[::-1] == first
    assert [sizes(seed=4).at(epoch, batch) for epoch in range(3) for batch in range(21)] != first


def test_cells_are_counted_at_the_size_of_the_batch() -> None:
    cells = CellCounts(images=2, anchors=3, strides=(8, 16, 32))
    assert cells.levels == 3
    assert cells.of(64) == [2 * 3 * 64, 2 * 3 * 16, 2 * 3 * 4]
    assert cells.of(96) == [2 * 3 * 144, 2 * 3 * 36, 2 * 3 * 9]
