"""Keyed permutations, computed value by value: no table, and nothing to remember."""

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 12
# A Feistel network over one or two bits reaches few permutations; small sizes walk a larger
# domain.
_LEAST_BITS = 6
_ONE, _WORD = np.uint64(1), np.uint64(64)


def round_keys(purpose: bytes, *numbers: int) -> NDArray[np.uint64]:
    """The key of a permutation: a hash, so that neighbouring numbers have nothing in common.

    Args:
        purpose: what is permuted; purposes are independent of each other.
        numbers: 0 … 2^64 - 1 each.
    """
    digest = hashlib.shake_256(purpose + struct.pack(f"<{len(numbers)}Q", *numbers))
    return np.frombuffer(digest.digest(8 * _ROUNDS), dtype="<u8")


def permute(
    values: NDArray[np.int64],
    sizes: NDArray[np.int64] | int,
    keys: NDArray[np.uint64],
    members: NDArray[np.int64] | int = 0,
) -> NDArray[np.int64]:
    """Where a permutation of 0 … size - 1 takes each value; any shape.

    A Feistel network permutes the smallest power of two that holds ``size`` (at least 64); a result
    that is too large is permuted again until it fits (cycle walking: fewer than two turns on
    average from 33 on, never more than 64 below), which leaves a permutation of the size.

    Args:
        values: 0 … size - 1.
        sizes: of each value's permutation.
        keys: of a family of permutations, from :func:`round_keys`.
        members: number of each value's permutation in the family.
    """
    walking = values.astype(np.uint64).ravel()
    size = np.broadcast_to(sizes, values.shape).astype(np.uint64).ravel()
    # Added to every round key; 0 for member 0.
    tweak = _mix(np.broadcast_to(members, values.shape).astype(np.uint64).ravel(), np.uint64(0))
    bits = np.maximum(_LEAST_BITS, _bit_lengths(size - _ONE)).astype(np.uint64)
    result = np.empty_like(walking)
    pending = np.arange(walking.size)
    while pending.size:
        walking = _network(walking, bits, keys, tweak)
        arrived = walking < size
        result[pending[arrived]] = walking[arrived]
        pending, walking = pending[~arrived], walking[~arrived]
        size, bits, tweak = size[~arrived], bits[~arrived], tweak[~arrived]
    return result.astype(np.int64).reshape(values.shape)


def _bit_lengths(values: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Like ``int.bit_length``, but perhaps 1 more above 2^53, where floats round."""
    lengths: NDArray[np.int32] = np.frexp(values.astype(np.float64))[1]
    return lengths


def _network(
    values: NDArray[np.uint64],
    bits: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    tweaks: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """A permutation of 0 … 2^bits - 1: each round changes one half by a hash of the other."""
    low_bits = bits >> _ONE
    high_bits = bits - low_bits
    low_shift, high_shift = _WORD - low_bits, _WORD - high_bits
    low = values & ((_ONE << low_bits) - _ONE)
    high = values >> low_bits
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        low = low ^ (_mix(high, even + tweaks) >> low_shift)
        high = high ^ (_mix(low, odd + tweaks) >> high_shift)
    permuted: NDArray[np.uint64] = (high << low_bits) | low
    return permuted


def _mix(values: NDArray[np.uint64], keys: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """A keyed 64-bit hash, best in its high bits: the finaliser of MurmurHash3."""
    mixed: NDArray[np.uint64] = values + keys
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(33)
    return mixed
