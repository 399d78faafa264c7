"""A keyed permutation is one, reaches all there are, and never changes."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdyolo.data.permutation import permute, round_keys

KEYS = round_keys(b"test", 1, 2)


def chi_squared(counts: Counter[Any], kinds: int) -> float:
    expected = sum(counts.values()) / kinds
    return sum((count - expected) ** 2 / expected for count in counts.values())


@given(data=st.data(), sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6))
@settings(max_examples=50)
def test_permutations_of_several_sizes_are_computed_together(data: Any, sizes: list[int]) -> None:
    members = data.draw(st.permutations(range(len(sizes))))
    values = np.concatenate([np.arange(size) for size in sizes])
    found = permute(values, np.repeat(sizes, sizes), KEYS, np.repeat(members, sizes))
    for part, size, member in zip(np.split(found, np.cumsum(sizes)[:-1]), sizes, members, strict=True):
        assert sorted(part) == list(range(size))
        assert part.tolist() == permute(np.arange(size), size, KEYS, member).tolist()


def test_members_of_a_family_reach_every_permutation_equally_often() -> None:
    members = np.repeat(np.arange(2400), 4)
    orders = permute(np.tile(np.arange(4), 2400), 4, KEYS, members).reshape(-1, 4)
    counts = Counter(map(tuple, orders.tolist()))
    assert len(counts) == 24
    assert chi_squared(counts, 24) < 49.7  # 23 degrees of freedom: exceeded once in a thousand keys


def test_neighbouring_members_are_independent() -> None:
    # Pairs of what two neighbours do to 0 must take all 100 values equally often.
    found = permute(np.zeros(10_001, dtype=np.int64), 10, KEYS, np.arange(10_001)).tolist()
    counts = Counter(itertools.pairwise(found))
    assert len(counts) == 100
    assert chi_squared(counts, 100) < 149  # 99 degrees of freedom: once in a thousand


def test_keys_tell_purposes_and_numbers_apart() -> None:
    names = [(b"a", 1, 2), (b"b", 1, 2), (b"a", 2, 1), (b"a", 1, 2, 0), (b"a", 1), (b"a", 1, 2**64 - 1)]
    keys = [tuple(round_keys(purpose, *numbers).tolist()) for purpose, *numbers in names]
    assert len(set(itertools.chain(*keys))) == len(names) * len(keys[0])


def test_the_shape_is_kept_and_nothing_is_permuted_to_nothing() -> None:
    assert permute(np.arange(6).reshape(2, 3), 6, KEYS).shape == (2, 3)
    assert permute(np.arange(0), 0, KEYS).tolist() == []
