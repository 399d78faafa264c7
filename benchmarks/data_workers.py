"""Loader processes: how far two get against one, and what the border between two epochs costs.

    python benchmarks/data_workers.py

The consumer does nothing with the batches. Loaders with one and with two workers take turns in one run;
whichever waits has filled its queue and sleeps. Beside it is told how far two bare decoders, which share
nothing, get against one in the same rounds: what the machine's second core is worth.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from claims import Claim, report
from data_augment import DRAWN, SIZE, assign_nothing, draw_and_pack
from data_pack import decoding, hold

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.loader import TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.workers import start_worker_server
from hvdyolo.utils.freed_memory import keep_freed_memory

BATCH = 16
ROUNDS = 13
BATCHES_A_ROUND = 24
PREFETCH = 2
EPOCHS = 12
SHORT_EPOCH = 16  # batches
DECODED = 400  # images of a bare decoder in a round
SETTLE_SECONDS = 1.0  # in which the loader that had its turn fills its queue


def main() -> int:
    """Returns 1 if a claim falls short."""
    torch.set_num_threads(1)
    keep_freed_memory(os.environ)  # as training does
    start_worker_server()
    with tempfile.TemporaryDirectory() as folder:
        split = draw_and_pack(Path(folder))
        ratio = two_against_one(split)
        gap = border_against_step(split)
    return report(
        [
            Claim("two workers / one, idle consumer", ratio, ">=", 1.8, "x"),
            Claim("first batch of an epoch / median step", gap, "<=", 2, "x"),
        ]
    )


def two_against_one(split: PackedSplit) -> float:
    """Median over rounds of the ratio of their speeds."""
    encoded = [split.read(index) for index in range(DRAWN)]
    loaders = {workers: load(split, workers, len(split)) for workers in (1, 2)}
    seconds: dict[int, list[float]] = {workers: [] for workers in loaders}
    bare: dict[int, list[float]] = {decoders: [] for decoders in loaders}
    with ProcessPoolExecutor(2, get_context("fork"), hold, (encoded,)) as decoders:
        decoding(decoders, 2, len(encoded))  # they are forked before there are loaders
        streams = {workers: iter(loader) for workers, loader in loaders.items()}
        for _ in range(ROUNDS):
            for workers, stream in streams.items():
                time.sleep(SETTLE_SECONDS)
                bare[workers].append(decoding(decoders, workers, DECODED))
                for _ in range(PREFETCH + 1):
                    next(stream)  # what was ready from the last round
                started = time.perf_counter()
                for _ in range(BATCHES_A_ROUND):
                    next(stream)
                seconds[workers].append(time.perf_counter() - started)
    for workers, rounds in seconds.items():
        print(f"{workers} workers: {BATCH * BATCHES_A_ROUND / np.median(rounds):.0f} images/s")
    print(f"two bare decoders / one: {np.median(np.array(bare[2]) / np.array(bare[1])):.3f} x")
    for loader in loaders.values():
        loader.close()
    return float(np.median(np.array(seconds[1]) / np.array(seconds[2])))


def border_against_step(split: PackedSplit) -> float:
    """Seconds from the last batch of an epoch to the first of the next, by the median between others."""
    with load(split, 2, SHORT_EPOCH * BATCH, epochs=EPOCHS) as loader:
        arrivals = [time.perf_counter() for _ in loader]
    gaps = np.diff(arrivals)
    borders = gaps[SHORT_EPOCH - 1 :: SHORT_EPOCH]
    return float(np.median(borders) / np.median(gaps))


def load(split: PackedSplit, workers: int, samples: int, epochs: int = 10_000) -> TrainLoader:
    """Batches as set by default of the first ``samples``."""
    return TrainLoader(
        split,
        BatchPlan(samples=samples, batch=BATCH, seed=0),
        LoaderConfig(image_size=SIZE, workers=workers, prefetch=PREFETCH),
        AugmentConfig(),
        assign_nothing,
        rank=0,
        size=1,
        epochs=epochs,
    )


if __name__ == "__main__":
    sys.exit(main())
