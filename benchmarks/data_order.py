"""How well the orders of training samples shuffle, and how fast any place in them is reached.

The split is as large as COCO's ``train2017``, sorted by 80 equally frequent classes, as it would come from
folders named after classes; 16 ranks load 16 images each. ``packed shuffled`` is that split after the one
shuffle that packing does, ``packed sorted`` without it. Ideal is what NumPy's permutations reach in the same
run; chance is computed. About 15 seconds of one core.

    python benchmarks/data_order.py
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
from claims import Claim, report
from numpy.typing import NDArray

from hvdyolo.data.block_order import BLOCK, WINDOW
from hvdyolo.data.order import BatchPlan, EpochOrder

SAMPLES = 118_287
CLASSES = 80
RANKS, RANK_BATCH = 16, 16
BATCH = RANKS * RANK_BATCH
EPOCHS = 6
HUGE = 100_000_000
RUN = 16
"""Batches in a row that are looked at together: about what a running average of a loss sees."""

Order = Literal["exact", "block"]
Samples = NDArray[np.int64]
ORDERS: tuple[Order, ...] = ("exact", "block")


def main() -> int:
    """Returns 1 if a claim is short."""
    epochs = {kind: [epoch_batches(kind, epoch) for epoch in range(EPOCHS)] for kind in ORDERS}
    claims = [*mixing_claims(epochs), *repetition_claims(epochs), *resume_claims()]
    code = report(claims)
    print()
    for line in notes(epochs):
        print(line)
    return code


def epoch_batches(kind: Order, epoch: int) -> Samples:
    """(batches, BATCH): the samples of an epoch that are in the loss; the last batch is filled with -1."""
    plan = BatchPlan(SAMPLES, BATCH, seed=0, order=kind)
    return np.array(
        [
            [entry.sample if entry.weight else -1 for entry in plan.entries(epoch, index, range(BATCH))]
            for index in range(plan.batches_per_epoch)
        ]
    )


def random_batches(seed: int) -> Samples:
    """The same of a true random permutation."""
    filled = np.full(-(-SAMPLES // BATCH) * BATCH, -1)
    filled[:SAMPLES] = np.random.default_rng(seed).permutation(SAMPLES)
    return filled.reshape(-1, BATCH)


def sorted_labels() -> NDArray[np.int64]:
    """The class of each sample."""
    return np.arange(SAMPLES) * CLASSES // SAMPLES


def packed_labels() -> dict[str, NDArray[np.int64]]:
    """The class of each sample as packed."""
    shuffled = sorted_labels()[EpochOrder(SAMPLES, 0).sample(0, np.arange(SAMPLES))]
    return {"packed shuffled": shuffled, "packed sorted": sorted_labels()}


def variation(batches: Samples, labels: NDArray[np.int64], run: int = 1) -> float:
    """Mean total variation between the class mix of ``run`` batches in a row and the split's."""
    whole = np.bincount(labels, minlength=CLASSES) / len(labels)
    # The last batch is not full, and a smaller one varies more.
    full = batches[: (len(batches) - 1) // run * run].reshape(-1, run * BATCH)
    mixes = [np.bincount(labels[batch], minlength=CLASSES) / batch.size for batch in full]
    return float(np.abs(np.array(mixes) - whole).sum(axis=1).mean() / 2)


def ideal_variation(run: int = 1) -> float:
    """That of random permutations."""
    return float(np.mean([variation(random_batches(seed), sorted_labels(), run) for seed in range(EPOCHS)]))


def mixing_claims(epochs: dict[Order, list[Samples]]) -> Iterator[Claim]:
    """Class mixes of global batches."""
    ideal = ideal_variation()
    for kind, batches in epochs.items():
        for packing, labels in packed_labels().items():
            found = float(np.mean([variation(epoch, labels) for epoch in batches]))
            name = f"{kind}, {packing}: total variation of a batch's classes over ideal {ideal:.3f}"
            yield Claim(name, found / ideal, "<=", 1.10)


def pairs_that_meet_again(one: Samples, other: Samples) -> int:
    """Pairs of samples that share a global batch in both of two epochs."""
    met = np.empty((2, SAMPLES), dtype=np.int64)
    for row, batches in zip(met, (one, other), strict=True):
        counted = batches >= 0
        row[batches[counted]] = counted.nonzero()[0]
    together = np.unique(met[0] * len(other) + met[1], return_counts=True)[1]
    return int((together * (together - 1) // 2).sum())


def pairs_by_chance() -> float:
    """Expectation of the same for two random permutations."""
    sizes = np.bincount(np.arange(SAMPLES) // BATCH)
    pairs = float((sizes * (sizes - 1) // 2).sum())
    return pairs**2 / (SAMPLES * (SAMPLES - 1) / 2)


def repetition_claims(epochs: dict[Order, list[Samples]]) -> Iterator[Claim]:
    """Meetings of the same samples, over all pairs of neighbouring epochs."""
    chance = pairs_by_chance()
    for kind, batches in epochs.items():
        found = np.mean([pairs_that_meet_again(*pair) for pair in itertools.pairwise(batches)])
        name = f"{kind}: pairs in a batch again in the next epoch over chance {chance:,.0f}"
        yield Claim(name, float(found) / chance, "<=", 1.1)


def resume_claims() -> Iterator[Claim]:
    """A rank that finds its place in a split of 100 million samples."""
    state = json.dumps({"seed": 2**63 - 1, "epoch": 299, "batch": HUGE // BATCH - 1})
    yield Claim("state of the stream at 1e8 samples", len(state.encode()), "<=", 256, "B")
    for kind in ORDERS:
        began = time.perf_counter()
        at = json.loads(state)
        plan = BatchPlan(HUGE, BATCH, at["seed"], kind)
        plan.entries(at["epoch"], at["batch"], plan.slots(RANKS - 1, RANKS))
        yield Claim(f"{kind}: resume at 1e8 samples", time.perf_counter() - began, "<=", 1.0, "s")


def notes(epochs: dict[Order, list[Samples]]) -> Iterator[str]:
    """Figures without a bar."""
    ideal = ideal_variation(RUN)
    for kind, batches in epochs.items():
        for packing, labels in packed_labels().items():
            found = float(np.mean([variation(epoch, labels, RUN) for epoch in batches]))
            name = f"{kind}, {packing}: variation of {RUN} batches in a row"
            yield f"{name} {found / ideal:.2f} x ideal {ideal:.3f}"
    for kind, batches in epochs.items():
        lane = batches[0][: BLOCK * WINDOW, 0]
        runs = 1 + int((np.diff(np.sort(lane)) > 1).sum())
        yield f"{kind}: {len(lane)} turns of a lane read {runs} runs of neighbours"
    for kind in ORDERS:
        cost = entry_microseconds(kind)
        yield f"{kind}: {cost:.0f} microseconds a slot to find what it holds, {RANK_BATCH} slots at a time"


def entry_microseconds(kind: Order) -> float:
    """Best of some trials, a slot."""
    plan = BatchPlan(HUGE, BATCH, 0, kind)
    best = float("inf")
    for index in range(200):
        began = time.perf_counter()
        plan.entries(0, index, range(RANK_BATCH))
        best = min(best, time.perf_counter() - began)
    return best / RANK_BATCH * 1e6


if __name__ == "__main__":
    sys.exit(main())
