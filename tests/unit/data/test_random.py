"""Random draws are named by what they are for, and no two names share them."""

import itertools

import numpy as np
import pytest

from hvdyolo.data.random import Purpose, sample_generator

WHO = Purpose.AUGMENTATION


def outputs(seed: int, epoch: int, position: int, count: int) -> list[int]:
    return sample_generator(seed, epoch, position, WHO).bit_generator.random_raw(count).tolist()


def test_a_name_gives_the_same_draws_whatever_was_drawn_before() -> None:
    first = sample_generator(3, 2, 1, WHO).random(8)
    np.random.default_rng().random(5)
    assert sample_generator(3, 2, 1, WHO).random(8).tolist() == first.tolist()


def test_the_draws_never_change() -> None:
    # A run resumed by a later version must draw the same.
    assert sample_generator(3, 2, 1, WHO).random(2).tolist() == pytest.approx(
        [0.5294149351106386, 0.09148162549106398], abs=1e-15
    )


def test_streams_neither_repeat_nor_overlap() -> None:
    large = 2**63 - 1
    names = [
        *itertools.product(range(4), range(4), range(4)),
        (large, 0, 0),
        (0, large, 0),
        (0, 0, large),
        (0, 0, 2**32),
        (0, 2**32, 0),
        (2**32, 0, 0),
    ]
    drawn = [outputs(*name, count=400) for name in names]
    # 64-bit outputs: any repetition among them means that streams share a piece.
    assert len(set(itertools.chain(*drawn))) == len(names) * 400


def test_draws_of_neighbours_are_independent() -> None:
    draws = np.array([sample_generator(0, 0, position, WHO).random(3) for position in range(4000)])
    assert draws.mean(0) == pytest.approx([0.5] * 3, abs=0.02)
    assert draws.var(0) == pytest.approx([1 / 12] * 3, abs=0.004)
    correlation = np.corrcoef(np.hstack([draws[:-1], draws[1:]]).T)
    assert np.abs(correlation - np.eye(6)).max() < 0.07
