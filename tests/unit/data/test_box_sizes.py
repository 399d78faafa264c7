"""Boxes of a split by columns, and sizes drawn from them."""

import numpy as np
import pytest

from hvdyolo.data.box_sizes import draw_box_sizes
from hvdyolo.data.reader import PackedSplit

# Sample i has i % 4 boxes, of flags 0, 1 (a crowd) and 2; row r is (r + 1) / 8 wide and 1 / (i + 2) high, of
# 24 x 16 pixels.


@pytest.fixture
def split(packed) -> PackedSplit:
    return PackedSplit(packed(shards=3, each=5).root, "train")


@pytest.mark.parametrize("part", [range(15), range(4, 11), range(5, 10), range(7, 8), range(3, 3)])
def test_columns_are_what_samples_tell_one_by_one(split: PackedSplit, part: range) -> None:
    seen = []
    before = sum(len(split.labels(sample)) for sample in range(part.start))
    for columns in split.columns(part):
        assert columns.first_box == before
        before += len(columns.labels)
        for place, (height, width) in enumerate(zip(columns.heights, columns.widths, strict=True)):
            sample = columns.first + place
            seen.append(sample)
            assert (height, width) == split.size(sample)
            own = columns.owners == place
            np.testing.assert_array_equal(columns.labels[own], split.labels(sample))
            np.testing.assert_array_equal(columns.flags[own], split.flags(sample))
            assert columns.boxes[place] == own.sum()
    assert seen == list(part)


def test_sizes_are_pixels_of_the_input_without_crowds(split: PackedSplit) -> None:
    # Samples 3 and 7 of the first eight have three boxes, 2 and 6 two, 1 and 5 one.
    found = draw_box_sizes(split, range(8), 48, most=100, seed=0)
    expected = [
        (48 / 8 * (row + 1), 32 / (sample + 2))
        for sample in range(8)
        for row in range(sample % 4)
        if row != 1  # the crowd
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_boxes_too_small_to_be_kept_are_left_out(split: PackedSplit) -> None:
    # 16 / (i + 2) is above 2 pixels up to sample 5.
    assert len(draw_box_sizes(split, range(15), 24, most=100, seed=0)) == 5


def test_a_draw_is_of_so_many_boxes_whatever_the_shares(split: PackedSplit) -> None:
    everything = draw_box_sizes(split, range(15), 480, most=100, seed=0)
    assert len(everything) == 14  # of 21 boxes, seven are crowds
    for seed in range(4):
        drawn = draw_box_sizes(split, range(15), 480, most=9, seed=seed)
        assert 2 <= len(drawn) <= 9
        shares = [
            draw_box_sizes(split, share, 480, 9, seed) for share in (range(4), range(4, 11), range(11, 15))
        ]
        np.testing.assert_array_equal(np.concatenate(shares), drawn)
    others = [draw_box_sizes(split, range(15), 480, most=9, seed=seed) for seed in range(4)]
    assert len({other.tobytes() for other in others}) > 1


def test_columns_come_a_shard_at_a_time(packed) -> None:
    split = PackedSplit(packed(shards=2, each=5).root, "train")
    assert [columns.first for columns in split.columns(range(10))] == [0, 5]
    assert split.boxes == sum(number % 4 for number in range(10))
