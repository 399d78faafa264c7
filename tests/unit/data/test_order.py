"""The order of an epoch is a permutation, and its division into batches misses and repeats nothing."""

import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdyolo.data.order import BatchPlan, EpochOrder
from hvdyolo.utils.errors import UsageError

SEEDS = st.integers(0, 2**63 - 1)


def order(samples: int, seed: int, epoch: int) -> list[int]:
    return EpochOrder(samples, seed).sample(epoch, np.arange(samples)).tolist()


@given(samples=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 2**31))
def test_an_epoch_is_a_permutation(samples: int, seed: int, epoch: int) -> None:
    assert sorted(order(samples, seed, epoch)) == list(range(samples))


@given(data=st.data(), samples=st.integers(1, 300))
def test_a_position_does_not_depend_on_what_else_is_asked(data: Any, samples: int) -> None:
    whole = np.array(order(samples, 5, 3))
    asked = np.array(data.draw(st.lists(st.integers(0, samples - 1), max_size=20)), dtype=np.int64)
    assert EpochOrder(samples, 5).sample(3, asked).tolist() == whole[asked].tolist()


def test_the_order_never_changes() -> None:
    # A run resumed by a later version must go on in the same order.
    assert order(12, 0, 0) == [0, 3, 8, 6, 4, 2, 1, 7, 10, 5, 9, 11]
    assert EpochOrder(100_000_000, 7).sample(9, np.array([0, 99_999_999])).tolist() == [
        26402503,
        99530577,
    ]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    keys = [*itertools.product(range(40), range(40)), (2**63 - 1, 0), (0, 2**62), (2**32, 0)]
    assert len({tuple(order(50, seed, epoch)) for seed, epoch in keys}) == len(keys)


def test_small_splits_reach_every_permutation_equally_often() -> None:
    counts = Counter(tuple(order(4, seed, epoch)) for seed in range(40) for epoch in range(60))
    expected = 2400 / 24
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 24
    assert chi_squared < 49.7  # 23 degrees of freedom: exceeded once in a thousand seeds


@pytest.mark.parametrize("samples", [1000, 65_536, 65_537])
def test_neighbours_are_spread_over_the_whole_split(samples: int) -> None:
    # On average |difference| of two random samples is a third of the split.
    gaps = np.abs(np.diff(order(samples, 1, 2))) / samples
    assert gaps.mean() == pytest.approx(1 / 3, abs=4 * 0.236 / np.sqrt(samples))


def test_batches_of_class_sorted_data_are_mixed_as_well_as_chance() -> None:
    samples, batch, classes = 8192, 64, 8
    label = np.arange(samples) * classes // samples

    def variation(positions: Any) -> float:
        batches = label[np.asarray(positions)].reshape(-1, batch)
        shares = np.stack([np.bincount(b, minlength=classes) for b in batches]) / batch
        return float(np.abs(shares - 1 / classes).sum(1).mean() / 2)

    ideal = variation(np.random.default_rng(0).permutation(samples))
    assert variation(order(samples, 0, 0)) == pytest.approx(ideal, rel=0.1)


def test_any_position_of_a_huge_split_is_reached_without_memory() -> None:
    tracemalloc.start()
    last = np.arange(99_999_900, 100_000_000)
    found = EpochOrder(100_000_000, 0).sample(1_000_000, last)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found.tolist())) == 100
    assert found.min() >= 0
    assert found.max() < 100_000_000
    assert peak < 100_000


def test_a_position_past_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="0 … 9"):
        EpochOrder(10, 0).sample(0, np.array([10]))
    with pytest.raises(ValueError, match="0 … 9"):
        EpochOrder(10, 0).sample(0, np.array([-1]))


@given(size=st.integers(1, 4096), spare=st.integers(0, 300), workers=st.integers(1, 9))
@settings(max_examples=200)
def test_slots_and_lanes_divide_a_batch(size: int, spare: int, workers: int) -> None:
    plan = BatchPlan(samples=10, batch=size + spare, seed=0)
    shares = [plan.slots(rank, size) for rank in range(size)]
    assert list(itertools.chain(*shares)) == list(range(plan.batch))
    lengths = {len(share) for share in shares}
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    for rank in {0, size // 2, size - 1}:
        lanes = [plan.lanes(rank, size, worker, workers) for worker in range(workers)]
        assert list(itertools.chain(*lanes)) == list(shares[rank])
        assert max(map(len, lanes)) - min(map(len, lanes)) <= 1


def test_uneven_slots_by_hand() -> None:
    plan = BatchPlan(samples=100, batch=8, seed=0)
    assert [plan.slots(rank, 3) for rank in range(3)] == [range(2), range(2, 5), range(5, 8)]
    assert [plan.lanes(1, 3, worker, 2) for worker in range(2)] == [range(2, 3), range(3, 5)]


@given(samples=st.integers(1, 500), batch=st.integers(1, 70), seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=200)
def test_every_sample_is_in_the_loss_once_an_epoch(samples: int, batch: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(samples, batch, seed)
    batches = [plan.entries(epoch, index, range(batch)) for index in range(plan.batches_per_epoch)]
    entries = list(itertools.chain(*batches))
    assert {len(b) for b in batches} == {batch}
    assert sorted(e.sample for e in entries if e.weight == 1) == list(range(samples))
    fillers = [e for e in entries if e.weight == 0]
    assert len(fillers) < batch
    assert fillers == entries[samples:]
    assert all(0 <= e.sample < samples for e in fillers)
    # The key of the random draws: a filler must not repeat the draws of the sample it stands for.
    assert [e.position for e in entries] == list(range(len(entries)))
    assert {e.epoch for e in entries} == {epoch}


@given(
    samples=st.integers(1, 400),
    size=st.integers(1, 16),
    spare=st.integers(0, 20),
    workers=st.integers(1, 5),
    seed=SEEDS,
)
@settings(max_examples=200)
def test_a_batch_depends_neither_on_ranks_nor_on_workers(
    samples: int, size: int, spare: int, workers: int, seed: int
) -> None:
    plan = BatchPlan(samples, size + spare, seed)
    index = plan.batches_per_epoch - 1
    split = [
        entry
        for rank in range(size)
        for worker in range(workers)
        for entry in plan.entries(4, index, plan.lanes(rank, size, worker, workers))
    ]
    assert split == plan.entries(4, index, range(plan.batch))


def test_ranks_see_other_samples_in_the_next_epoch() -> None:
    plan = BatchPlan(samples=4000, batch=40, seed=0)

    def share(epoch: int) -> set[int]:
        slots = plan.slots(1, 4)
        return {
            e.sample for index in range(plan.batches_per_epoch) for e in plan.entries(epoch, index, slots)
        }

    # A quarter of a quarter by chance, 250 with a standard deviation of 12.
    assert len(share(0)) == len(share(1)) == 1000
    assert 190 < len(share(0) & share(1)) < 310


def test_more_ranks_than_images_is_a_users_mistake() -> None:
    plan = BatchPlan(samples=100, batch=3, seed=0)
    assert [len(plan.slots(rank, 3)) for rank in range(3)] == [1, 1, 1]
    with pytest.raises(UsageError, match=r"train\.batch is 3, but there are 4 ranks"):
        plan.slots(0, 4)


@pytest.mark.parametrize(("samples", "batch"), [(0, 4), (4, 0)])
def test_an_empty_split_or_batch_is_a_users_mistake(samples: int, batch: int) -> None:
    with pytest.raises(UsageError):
        BatchPlan(samples, batch, seed=0)
