"""Which sample is read when, and by whom: pure functions of the configuration.

Nothing here depends on what was read before, so resuming needs only (seed, epoch, batch), and what
is in a batch depends neither on the number of ranks nor on the number of workers.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.block_order import BlockOrder, Window
from hvdyolo.data.permutation import permute, round_keys
from hvdyolo.utils.errors import UsageError

RECENT = 8
"""Earlier batches whose samples a slot may mix in, where these are to be recent ones."""

# A call for 4 samples takes as long as one for 500.
_PERMUTED_AT_ONCE = 512


@dataclass(frozen=True)
class EpochOrder:
    """A permutation of the samples for every epoch, computed position by position."""

    samples: int
    seed: int

    def sample(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample at each position, 0 … samples - 1, of an epoch; any shape."""
        if position.size and (position.min() < 0 or position.max() >= self.samples):
            raise ValueError(f"positions must be in 0 … {self.samples - 1}")
        return permute(position, self.samples, round_keys(b"hvdyolo order", self.seed, epoch))


@dataclass(frozen=True)
class SlotEntry:
    """What one slot of a global batch holds."""

    sample: int
    weight: int
    """0 where the slot only fills the epoch's last batch and has no part in the loss, else 1."""
    epoch: int
    position: int
    """Place in the epoch; with the epoch, the key of all of the slot's random draws."""
    partners: range | Window | tuple[int, ...]
    """Samples that may be mixed into it, as in a mosaic."""


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of an epoch, and their division among ranks and workers.

    Batch t is the positions t * batch … (t + 1) * batch - 1 of the epoch. Every sample is in the
    loss exactly once an epoch; in the last batch, slots that are left over hold samples of weight 0,
    so every rank takes the same number of steps.

    In the order ``exact`` any position may hold any sample, and so may any mosaic: positions past the
    last sample start over at the first. In the order ``block`` each slot is a lane that reads runs
    of neighbouring samples (:class:`BlockOrder`) and mixes only samples of one window of it.

    With partners ``recent``, a slot mixes in what it held in the last :data:`RECENT` batches, so that a
    worker, which has the same slots of every batch, need not decode it again.
    """

    samples: int
    batch: int
    """Images of a batch over all ranks together."""
    seed: int
    order: Literal["exact", "block"] = "exact"
    partners: Literal["any", "recent"] = "any"

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
        entries = self._entries(epoch, batch, slots)
        if self.partners == "any":
            return entries
        recent = self._recent(epoch, batch, slots)
        return [replace(entry, partners=partners) for entry, partners in zip(entries, recent, strict=True)]

    def _recent(self, epoch: int, batch: int, slots: range) -> list[tuple[int, ...]]:
        """What each slot held in the batches before, the last first; before the first come epoch 0's last."""
        steps = (epoch * self.batches_per_epoch + batch - ago for ago in range(1, RECENT + 1))
        before = (divmod(step, self.batches_per_epoch) for step in steps)
        held = [_held(self, max(epoch, 0), batch, slots) for epoch, batch in before]
        return list(zip(*held, strict=True))

    def _entries(self, epoch: int, batch: int, slots: range) -> list[SlotEntry]:
        if self.order == "block":
            return self._block_entries(epoch, batch, slots)
        return self._exact_entries(epoch, batch, slots)

    def _exact_entries(self, epoch: int, batch: int, slots: range) -> list[SlotEntry]:
        run = max(1, _PERMUTED_AT_ONCE // max(1, len(slots)))
        samples = _exact_samples(self, epoch, range(batch // run * run, (batch // run + 1) * run), slots)
        first = batch * self.batch
        return [
            SlotEntry(sample, int(position < self.samples), epoch, position, range(self.samples))
            for sample, position in zip(
                samples[batch % run], range(first + slots.start, first + slots.stop), strict=True
            )
        ]

    def _block_entries(self, epoch: int, batch: int, slots: range) -> list[SlotEntry]:
        turns = BlockOrder(self.samples, self.batch, self.seed).turns(epoch, batch, slots)
        return [
            SlotEntry(turn.sample, int(turn.counts), epoch, batch * self.batch + slot, turn.window)
            for turn, slot in zip(turns, slots, strict=True)
        ]


@lru_cache(maxsize=4)
def _exact_samples(plan: BatchPlan, epoch: int, batches: range, slots: range) -> list[list[int]]:
    """The samples of some slots of consecutive batches in the order ``exact``."""
    first = np.arange(batches.start, batches.stop, dtype=np.int64)[:, None] * plan.batch
    positions = first + np.arange(slots.start, slots.stop, dtype=np.int64)
    samples: list[list[int]] = (
        EpochOrder(plan.samples, plan.seed).sample(epoch, positions % plan.samples).tolist()
    )
    return samples


@lru_cache(maxsize=2 * RECENT)  # the next batch asks for all of these but one again
def _held(plan: BatchPlan, epoch: int, batch: int, slots: range) -> tuple[int, ...]:
    """The samples of some slots of a batch."""
    return tuple(entry.sample for entry in plan._entries(epoch, batch, slots))
