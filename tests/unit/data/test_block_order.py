"""Lanes read runs of neighbours, a window of them at a time, and know it without walking there."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdyolo.config import AugmentConfig
from hvdyolo.data.block_order import BLOCK, WINDOW, BlockOrder, LaneTurn
from hvdyolo.data.parameters import draw_parameters
from hvdyolo.data.random import Purpose, sample_generator

SEEDS = st.integers(0, 2**63 - 1)


def lane_turns(order: BlockOrder, epoch: int) -> list[list[LaneTurn]]:
    """All turns of an epoch, a list for each lane."""
    turns = [order.turns(epoch, t, range(order.lanes)) for t in range(-(-order.samples // order.lanes))]
    return [list(lane) for lane in zip(*turns, strict=True)]


def runs(turns: list[LaneTurn]) -> int:
    """Number of stretches of neighbours that the samples of some turns make up."""
    return int((np.diff(sorted(turn.sample for turn in turns)) > 1).sum()) + 1


@given(
    lanes=st.integers(1, 12),
    turns=st.integers(1, 500),
    spare=st.integers(0, 11),
    seed=SEEDS,
    epoch=st.integers(0, 2**31),
)
@settings(max_examples=10, deadline=None)
def test_lanes_read_long_runs_a_window_at_a_time(
    lanes: int, turns: int, spare: int, seed: int, epoch: int
) -> None:
    samples = max(1, lanes * turns - spare % lanes)
    for lane in lane_turns(BlockOrder(samples, lanes, seed), epoch):
        reading = list(itertools.takewhile(lambda turn: turn.counts, lane))
        assert [turn.counts for turn in lane[len(reading) :]] == [False] * (turns - len(reading))
        assert len(reading) in (samples // lanes, -(-samples // lanes))
        # The lane's two ends and the ring's may each cut a block.
        assert not reading or runs(reading) <= len(reading) // BLOCK + 3
        for window, group in itertools.groupby(reading, key=lambda turn: turn.window):
            read = [turn.sample for turn in group]
            assert sorted(read) == sorted(window[place] for place in range(len(window)))
            assert len(read) <= BLOCK * WINDOW
            assert len(window.blocks) <= WINDOW


def test_a_place_outside_a_window_is_refused() -> None:
    (turn,) = BlockOrder(100, 1, 0).turns(0, 0, range(1))
    for place in (-1, len(turn.window)):
        with pytest.raises(IndexError):
            turn.window[place]


def test_windows_are_shuffled() -> None:
    # 8 windows of 256: by chance, half of all steps go up and few go to the next sample.
    (turns,) = lane_turns(BlockOrder(2048, 1, 0), 0)
    steps = np.diff([turn.sample for turn in turns])
    assert (steps > 0).mean() == pytest.approx(0.5, abs=4 * 0.29 / np.sqrt(2047))
    assert (steps == 1).sum() < 25  # 8 by chance


def test_a_short_lane_repeats_what_opens_the_next() -> None:
    # Lanes of 1, 1, 2, 1 and 2: the last turn of the first two and the fourth only fills.
    lanes = lane_turns(BlockOrder(7, 5, 0), 3)
    assert [[turn.counts for turn in turns] for turns in lanes] == [
        [True, False], [True, False], [True, True], [True, False], [True, True],
    ]  # fmt: skip
    assert lanes[0][1].sample == lanes[1][0].sample
    assert lanes[1][1].sample == lanes[2][0].sample
    assert lanes[3][1].sample == lanes[4][0].sample
    # More lanes than samples: lanes 0, 1 and 3 are empty, and show what lanes 2 and 4 hold.
    shown = [turn.sample for turn in BlockOrder(2, 5, 0).turns(0, 0, range(5))]
    assert shown == [shown[2], shown[2], shown[2], shown[4], shown[4]]
    assert sorted({*shown}) == [0, 1]


def test_block_borders_move_from_epoch_to_epoch() -> None:
    # Else the same 32 samples would share a block, and never a batch, for the whole run.
    order = BlockOrder(32 * 64, 4, 0)
    borders = {order.turns(epoch, 0, range(1))[0].window.blocks[0] % BLOCK for epoch in range(200)}
    # 200 draws of 32 borders miss each with probability 0.0017.
    assert len(borders) >= 30


def test_lanes_do_not_all_want_new_blocks_at_once() -> None:
    # 4096 samples a lane: their windows would all begin together.
    order = BlockOrder(4096 * 64, 64, 0)
    turns = [order.turns(0, turn, range(64)) for turn in range(600)]
    changes = [
        sum(now.window != before.window for now, before in zip(*pair, strict=True))
        for pair in itertools.pairwise(turns)
    ]
    assert max(changes) == 64 // WINDOW
    assert sum(changes) in range(2 * 64, 3 * 64 + 1)


def test_lanes_get_other_blocks_every_epoch() -> None:
    order = BlockOrder(4000, 40, 0)
    shares = [{turn.sample for turns in lane_turns(order, epoch)[:10] for turn in turns} for epoch in (0, 1)]
    # A quarter of a quarter by chance, 250; blocks of 32 spread it by about 65.
    assert len(shares[0]) == len(shares[1]) == 1000
    assert 50 < len(shares[0] & shares[1]) < 510


def test_a_mosaic_is_made_of_one_window() -> None:
    order = BlockOrder(5000, 4, 0)
    sources = set()
    with_mixup = AugmentConfig(mixup=1.0)
    for turn, number in itertools.product(range(200), range(4)):
        (entry,) = order.turns(0, turn, range(number, number + 1))
        generator = sample_generator(0, 0, turn * 4 + number, Purpose.AUGMENTATION)
        parameters = draw_parameters(with_mixup, entry.sample, entry.window, generator)
        held = {entry.window[place] for place in range(len(entry.window))}
        assert entry.sample in parameters.picture.sources
        assert parameters.mixup is not None
        assert {*parameters.picture.sources, *parameters.mixup.picture.sources} <= held
        sources |= {*parameters.picture.sources}
    assert len(sources) > 0.95 * 4 * 200


def test_the_order_never_changes() -> None:
    # A run resumed by a later version must go on in the same order.
    assert [turn.sample for turn in BlockOrder(100, 3, 7).turns(9, 33, range(3))] == [64, 7, 6]
    assert [turn.sample for turn in BlockOrder(10**8, 4096, 7).turns(9, 20_000, range(4094, 4096))] == [
        18755426,
        67974040,
    ]
