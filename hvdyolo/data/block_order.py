"""The order ``block``: an epoch in runs of neighbouring samples, for storage that serves runs best."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.permutation import permute, round_keys

BLOCK = 32
"""Neighbouring samples that one lane reads."""
WINDOW = 8
"""Blocks that a lane shuffles together, and so has in reading at a time."""

_SPAN = BLOCK * WINDOW


@dataclass(frozen=True)
class Window:
    """The samples that a lane shuffles together, by their places in the window."""

    blocks: tuple[int, ...]
    """First sample of each block."""
    skipped: int
    """Samples of the first block that belong to another lane."""
    length: int
    """Samples of the window, 1 … 256."""
    samples: int
    """Of the split, which is a ring: after the last comes sample 0."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int, /) -> int:
        if not 0 <= place < self.length:
            raise IndexError(f"place {place} of {self.length}")
        block, offset = divmod(self.skipped + place, BLOCK)
        return (self.blocks[block] + offset) % self.samples


@dataclass(frozen=True)
class LaneTurn:
    """What a lane reads in one turn."""

    sample: int
    counts: bool
    """False where the lane has ended, one turn before others, and ``sample`` only fills a slot."""
    window: Window
    """Where ``sample`` is from."""


@dataclass(frozen=True)
class BlockOrder:
    """An epoch's samples, divided among lanes; every lane has as many as others, or one more or less.

    The split is a ring, cut at another sample every epoch, so that block borders move. From the cut on
    it is divided into blocks, and the whole ones are permuted; the rest, shorter than a block, stays
    last. The sequence that this deals is cut into one run a lane. A lane goes through its run window
    by window, and through each window in an order of its own. The ends of a run may cut a block: its
    neighbours have the rest.
    """

    samples: int
    lanes: int
    seed: int

    def turns(self, epoch: int, turn: int, lanes: range) -> list[LaneTurn]:
        """What some lanes read in their turn 0 … ceil(samples / lanes) - 1."""
        lane = np.arange(lanes.start, lanes.stop, dtype=np.int64)
        ends = self._starts(lane + 1)
        counts = turn < ends - self._starts(lane)
        # A lane that has ended repeats what opens the next one that is not empty.
        lane = np.where(counts, lane, self._lanes_of(ends % self.samples))
        dealt = self._starts(lane) + np.where(counts, turn, 0)
        firsts, stops = self._windows_of(lane, dealt)
        keys = round_keys(b"hvdyolo window", self.seed, epoch)
        # No two windows begin at the same place of the sequence, so that names their permutations.
        places = permute(dealt - firsts, stops - firsts, keys, firsts)
        return [
            LaneTurn(window[place], counted, window)
            for window, place, counted in zip(
                self._windows(epoch, firsts, stops), places.tolist(), counts.tolist(), strict=True
            )
        ]

    def _starts(self, lane: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the dealt sequence the runs of lanes begin; lane ``lanes`` begins at its end."""
        starts: NDArray[np.int64] = lane * self.samples // self.lanes
        return starts

    def _lanes_of(self, dealt: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lanes in whose runs these places of the dealt sequence are: inverse of ``_starts``."""
        lanes: NDArray[np.int64] = ((dealt + 1) * self.lanes - 1) // self.samples
        return lanes

    def _windows_of(
        self, lane: NDArray[np.int64], dealt: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and past-the-last place, in the dealt sequence, of the windows of some places."""
        start = self._starts(lane)
        # Windows of neighbouring lanes begin at different turns: or all would want new blocks at once.
        origin = (start // BLOCK - lane % WINDOW) * BLOCK
        first = origin + (dealt - origin) // _SPAN * _SPAN
        return np.maximum(first, start), np.minimum(first + _SPAN, self._starts(lane + 1))

    def _windows(self, epoch: int, firsts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[Window]:
        counts = (stops - 1) // BLOCK - firsts // BLOCK + 1
        # As many for each as the longest window needs, to compute them together.
        blocks = self._blocks(epoch, firsts[:, None] // BLOCK + np.arange(counts.max(initial=0)))
        return [
            Window(tuple(block[:count]), skipped, length, self.samples)
            for block, count, skipped, length in zip(
                blocks.tolist(),
                counts.tolist(),
                (firsts % BLOCK).tolist(),
                (stops - firsts).tolist(),
                strict=True,
            )
        ]

    def _blocks(self, epoch: int, dealt: NDArray[np.int64]) -> NDArray[np.int64]:
        """First sample of the blocks at places of the dealt sequence, in blocks."""
        whole = self.samples // BLOCK
        permuted = dealt.copy()
        among = dealt < whole
        permuted[among] = permute(dealt[among], whole, round_keys(b"hvdyolo blocks", self.seed, epoch))
        cut = int(round_keys(b"hvdyolo cut", self.seed, epoch)[0]) % self.samples
        firsts: NDArray[np.int64] = (cut + permuted * BLOCK) % self.samples
        return firsts
