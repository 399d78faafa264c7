"""Which sample is read when, and by whom: pure functions of the configuration.

Nothing here depends on what was read before, so resuming needs only (seed, epoch, batch), and what
is in a batch depends neither on the number of ranks nor on the number of workers.
"""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdyolo.utils.errors import UsageError

_ROUNDS = 12
# A Feistel network over one or two bits reaches few permutations; tiny splits walk a larger
# domain.
_LEAST_BITS = 6


@dataclass(frozen=True)
class EpochOrder:
    """A permutation of the samples for every epoch, computed position by position.

    A Feistel network keyed by (seed, epoch) permutes the smallest power of two that holds all
    samples (at least 64); a result that is no sample is permuted again until it is one (cycle
    walking, fewer than two turns on average), which leaves a permutation of the samples.
    """

    samples: int
    seed: int

    def sample(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample at each position, 0 … samples - 1, of an epoch; any shape."""
        if position.size and (position.min() < 0 or position.max() >= self.samples):
            raise ValueError(f"positions must be in 0 … {self.samples - 1}")
        keys = _round_keys(self.seed, epoch)
        bits = max(_LEAST_BITS, (self.samples - 1).bit_length())
        walking = position.astype(np.uint64).ravel()
        result = np.empty_like(walking)
        pending = np.arange(walking.size)
        while pending.size:
            walking = _permute(walking, bits, keys)
            arrived = walking < self.samples
            result[pending[arrived]] = walking[arrived]
            pending, walking = pending[~arrived], walking[~arrived]
        return result.astype(np.int64).reshape(position.shape)


@dataclass(frozen=True)
class SlotEntry:
    """What one slot of a global batch holds."""

    sample: int
    weight: int
    """0 where the slot only fills the epoch's last batch and has no part in the loss, else 1."""
    epoch: int
    position: int
    """Place in the epoch; with the epoch, the key of all of the slot's random draws."""


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of an epoch, and their division among ranks and workers.

    Batch t is the positions t * batch … (t + 1) * batch - 1 of the epoch's order. Positions past
    the last sample start over at the first, with weight 0: every sample is in the loss exactly
    once an epoch, and every rank takes the same number of steps.
    """

    samples: int
    batch: int
    """Images of a batch over all ranks together."""
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError("the training split is empty: pack a split that holds images.")
        if self.batch < 1:
            raise UsageError(f"train.batch is {self.batch}, but a batch holds at least 1 image.")

    @property
    def batches_per_epoch(self) -> int:
        """Steps of every rank in an epoch."""
        return -(-self.samples // self.batch)

    def slots(self, rank: int, size: int) -> range:
        """Slots of every global batch that a rank loads: as many as others, or one more or less."""
        if size > self.batch:
            raise UsageError(
                f"train.batch is {self.batch}, but there are {size} ranks and each needs an image: "
                f"set it to at least {size} or start fewer ranks."
            )
        return range(rank * self.batch // size, (rank + 1) * self.batch // size)

    def lanes(self, rank: int, size: int, worker: int, workers: int) -> range:
        """Slots of every global batch that one worker of a rank loads; a slot is a lane."""
        slots = self.slots(rank, size)
        first, last = (w * len(slots) // workers for w in (worker, worker + 1))
        return slots[first:last]

    def entries(self, epoch: int, batch: int, slots: range) -> list[SlotEntry]:
        """What the given slots of a batch hold."""
        positions = batch * self.batch + np.arange(slots.start, slots.stop, dtype=np.int64)
        samples = EpochOrder(self.samples, self.seed).sample(epoch, positions % self.samples)
        return [
            SlotEntry(sample, int(position < self.samples), epoch, position)
            for sample, position in zip(samples.tolist(), positions.tolist(), strict=True)
        ]


def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Keys of the rounds: a hash, so that neighbouring seeds and epochs have nothing in common."""
    digest = hashlib.shake_256(b"hvdyolo order" + struct.pack("<QQ", seed, epoch))
    return np.frombuffer(digest.digest(8 * _ROUNDS), dtype="<u8")


def _permute(values: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 0 … 2^bits - 1: each round changes one half by a hash of the other."""
    low_bits, high_bits = bits // 2, bits - bits // 2
    low = values & np.uint64((1 << low_bits) - 1)
    high = values >> np.uint64(low_bits)
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        low = low ^ (_mix(high, even) >> np.uint64(64 - low_bits))
        high = high ^ (_mix(low, odd) >> np.uint64(64 - high_bits))
    permuted: NDArray[np.uint64] = (high << np.uint64(low_bits)) | low
    return permuted


def _mix(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A keyed 64-bit hash, best in its high bits: the finaliser of MurmurHash3."""
    mixed: NDArray[np.uint64] = values + key
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(33)
    return mixed
