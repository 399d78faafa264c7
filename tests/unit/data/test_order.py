"""The order of an epoch is a permutation, and its division into batches misses and repeats nothing."""

import itertools
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdyolo.data.order import RECENT, BatchPlan, EpochOrder, SlotEntry
from hvdyolo.utils.errors import UsageError

SEEDS = st.integers(0, 2**63 - 1)
Order = Literal["exact", "block"]
ORDERS: tuple[Order, ...] = ("exact", "block")
both_orders = pytest.mark.parametrize("kind", ORDERS)


def order(samples: int, seed: int, epoch: int) -> list[int]:
    return EpochOrder(samples, seed).sample(epoch, np.arange(samples)).tolist()


def batches(plan: BatchPlan, epoch: int) -> list[list[SlotEntry]]:
    return [plan.entries(epoch, index, range(plan.batch)) for index in range(plan.batches_per_epoch)]


def held(plan: BatchPlan, epoch: int) -> list[list[int]]:
    """The samples of each batch that are in the loss."""
    return [[entry.sample for entry in batch if entry.weight] for batch in batches(plan, epoch)]


@st.composite
def plans(draw: Any, kind: Order) -> BatchPlan:
    """Plans of up to 4,396 slots and 25 steps, whose last batch is full or not."""
    batch = draw(st.integers(1, 4096)) + draw(st.integers(0, 300))
    steps = draw(st.integers(1, min(25, max(1, 3000 // batch))))
    samples = max(1, steps * batch - draw(st.integers(0, batch - 1)))
    return BatchPlan(samples, batch, draw(SEEDS), kind)


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


@both_orders
def test_seeds_and_epochs_have_orders_of_their_own(kind: Order) -> None:
    keys = [*itertools.product(range(16), range(16)), (2**63 - 1, 0), (0, 2**62), (2**32, 0), (0, 2**32)]
    orders = set()
    for seed, epoch in keys:
        first = BatchPlan(5000, 100, seed, kind).entries(epoch, 0, range(100))
        orders.add(tuple(sorted(entry.sample for entry in first)))
    assert len(orders) == len(keys)


def test_small_splits_reach_every_permutation_equally_often() -> None:
    counts = Counter(tuple(order(4, seed, epoch)) for seed in range(40) for epoch in range(15))
    expected = 600 / 24
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 24
    assert chi_squared < 49.7  # 23 degrees of freedom: exceeded once in a thousand seeds


@pytest.mark.parametrize("samples", [1000, 65_536, 65_537])
def test_neighbours_are_spread_over_the_whole_split(samples: int) -> None:
    # On average |difference| of two random samples is a third of the split.
    gaps = np.abs(np.diff(order(samples, 1, 2))) / samples
    assert gaps.mean() == pytest.approx(1 / 3, abs=4 * 0.236 / np.sqrt(samples))


@both_orders
def test_batches_of_class_sorted_data_are_mixed_as_well_as_chance(kind: Order) -> None:
    samples, batch, classes = 8192, 64, 8
    label = np.arange(samples) * classes // samples

    def variation(order: Any) -> float:
        batches = label[np.asarray(order)].reshape(-1, batch)
        shares = np.stack([np.bincount(b, minlength=classes) for b in batches]) / batch
        return float(np.abs(shares - 1 / classes).sum(1).mean() / 2)

    ideal = variation(np.random.default_rng(0).permutation(samples))
    assert variation(held(BatchPlan(samples, batch, 0, kind), 0)) < 1.1 * ideal


@both_orders
def test_any_position_of_a_huge_split_is_reached_without_memory(kind: Order) -> None:
    state = json.dumps({"seed": 2**63 - 1, "epoch": 1_000_000, "batch": 99_999_999 // 256})
    assert len(state.encode()) <= 256
    tracemalloc.start()
    resumed = json.loads(state)
    plan = BatchPlan(100_000_000, 256, resumed["seed"], kind)
    found = plan.entries(resumed["epoch"], resumed["batch"], range(256))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({entry.sample for entry in found if entry.weight}) == 256
    assert all(0 <= entry.sample < 100_000_000 for entry in found)
    assert peak < 1_000_000  # a bit for each sample would be 12.5 MB


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


@both_orders
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_the_loss_once_an_epoch(kind: Order, data: Any) -> None:
    plan = data.draw(plans(kind))
    epoch = data.draw(st.integers(0, 2**31))
    epoch_batches = batches(plan, epoch)
    entries = list(itertools.chain(*epoch_batches))
    assert {len(batch) for batch in epoch_batches} == {plan.batch}
    assert sorted(e.sample for e in entries if e.weight == 1) == list(range(plan.samples))
    assert {e.weight for e in entries} <= {0, 1}
    fillers = [e for e in entries if e.weight == 0]
    assert len(fillers) < plan.batch
    assert all(e.weight == 1 for batch in epoch_batches[:-1] for e in batch)
    assert all(0 <= e.sample < plan.samples for e in fillers)
    # The key of the random draws: a filler must not repeat the draws of the sample it stands for.
    assert [e.position for e in entries] == list(range(len(entries)))
    assert {e.epoch for e in entries} == {epoch}


@both_orders
@given(data=st.data(), workers=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_a_batch_depends_neither_on_ranks_nor_on_workers(kind: Order, data: Any, workers: int) -> None:
    plan = data.draw(plans(kind))
    size = data.draw(st.integers(1, min(plan.batch, 4096)))
    index = data.draw(st.integers(0, plan.batches_per_epoch - 1))
    whole = plan.entries(4, index, range(plan.batch))
    # All of these ranges together are the batch: test_slots_and_lanes_divide_a_batch.
    for rank in {0, size - 1, data.draw(st.integers(0, size - 1))}:
        lanes = plan.lanes(rank, size, data.draw(st.integers(0, workers - 1)), workers)
        assert plan.entries(4, index, lanes) == whole[lanes.start : lanes.stop]


@both_orders
@given(data=st.data(), samples=st.integers(64, 600), epoch=st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_epochs_differ_in_what_their_batches_hold(kind: Order, data: Any, samples: int, epoch: int) -> None:
    plan = BatchPlan(samples, data.draw(st.integers(samples // 8, samples // 2)), 0, kind)
    first, following = (plan.entries(e, 0, range(plan.batch)) for e in (epoch, epoch + 1))
    assert {entry.sample for entry in first} != {entry.sample for entry in following}


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


@both_orders
@given(data=st.data())
@settings(max_examples=20)
def test_recent_partners_are_what_the_slot_held(kind: Order, data: Any) -> None:
    plan = replace(data.draw(plans(kind)), partners="recent")
    alone = replace(plan, partners="any")
    # Two epochs, so that some slots look back over their border.
    steps = [batch for epoch in (0, 1) for batch in batches(alone, epoch)]
    last_of_first = steps[: plan.batches_per_epoch]
    number = data.draw(st.integers(0, len(steps) - 1))
    for slot, entry in enumerate(plan.entries(*divmod(number, plan.batches_per_epoch), range(plan.batch))):
        assert replace(entry, partners=()) == replace(steps[number][slot], partners=())
        before = [
            steps[number - ago] if number >= ago else last_of_first[(number - ago) % plan.batches_per_epoch]
            for ago in range(1, RECENT + 1)
        ]
        assert entry.partners == tuple(batch[slot].sample for batch in before)
