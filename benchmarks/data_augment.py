"""Training samples a second of one core at 640 pixels, mosaic, default strengths, against the usual pipeline.

    python benchmarks/data_augment.py

All make whole batches from the same encoded 640×480 images in one process, in rounds in which their order
changes, as a loader worker does, in memory that is allocated once; figures are medians of the rounds' ratios.
No sample has a second turn, so what is cached serves mosaics alone, as in an epoch of many batches.
"""

import io
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, report
from classical_pipeline import ClassicalPipeline
from PIL import Image

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.order import RECENT, BatchPlan
from hvdyolo.data.pack import main as pack
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.train_part import LoadPart, TrainTask
from hvdyolo.ops.pixels import prepare_images

DRAWN, COPIES = 128, 16
IMAGES = DRAWN * COPIES
TIMES = 12  # over; a worker tells samples apart by their number alone
BATCH = 16
ROUNDS = 19
BATCHES_A_ROUND = 4
WARM_UP = RECENT // BATCHES_A_ROUND  # rounds, after which what is mixed in has had its turn in them
SIZE = 640

FUSED = AugmentConfig(resampling="bilinear", decoding="coarse", colours="workers")
CACHED = replace(FUSED, partners="recent")
MODES = {
    "exact": AugmentConfig(resampling="exact", colours="workers"),
    "fused": FUSED,
    "cached and fused": CACHED,
    "cached and fused, colours on the device": replace(CACHED, colours="device"),
    "as set by default for a GPU": AugmentConfig(colours="device"),
}
BARE = "classical, its operations alone"
ONE_OF_16 = "cached and fused, one of 8 ranks x 2 workers"
BARS = {**dict(zip(MODES, (1.1, 1.5, 2.4, 4.4), strict=False)), ONE_OF_16: 2.4}


def main() -> int:
    """Returns 1 if a claim falls short."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        split = draw_and_pack(Path(folder))
        encoded = [split.read(index) for index in range(len(split))]
        classical = ClassicalPipeline(encoded, [split.labels(index) for index in range(len(split))], seed=0)
        repeated = Repeated(split, TIMES)
        workers = {name: worker(repeated, settings) for name, settings in MODES.items()}
        workers[ONE_OF_16] = worker(repeated, MODES["cached and fused"], ranks=8, workers_a_rank=2)
        images = np.empty((BATCH, 3, SIZE, SIZE), dtype=np.uint8)
        indices = np.random.default_rng(0)
        parts: list[dict[str, float]] = []
        variants: dict[str, Callable[[], object]] = {
            "classical": lambda: classical.batch(indices.integers(IMAGES, size=BATCH).tolist(), images),
            BARE: lambda: parts.append(classical.bare_batch(images)),
            **workers,
        }
        seconds = time_interleaved(variants)
        device = device_seconds(next(iter(load(split))))
    print(f"{len(encoded)} images, {np.mean([len(raw) for raw in encoded]) / 1000:.0f} kB on average")
    for name, rounds in seconds.items():
        print(f"{name}: {BATCH * BATCHES_A_ROUND / np.median(rounds):.0f} images/s")
    print(f"{BARE}: " + ", ".join(f"{name} {milliseconds(parts, name):.2f} ms" for name in parts[0]))
    mode = "cached and fused, colours on the device"
    whole = np.array(seconds[mode]) / (BATCH * BATCHES_A_ROUND) + device
    end_to_end = float(np.median(np.array(seconds["classical"]) / (BATCH * BATCHES_A_ROUND) / whole))
    print(
        f"where this core is the device: {1000 * device:.2f} ms an image more, {end_to_end:.2f} x classical"
    )
    return report(
        [
            Claim("the usual pipeline / its parts", 1 / ratio(seconds, BARE), "<=", 1.1),
            *(
                Claim(f"{name} / the usual", ratio(seconds, name), ">=", bar, "x")
                for name, bar in BARS.items()
            ),
        ]
    )


def draw_and_pack(folder: Path) -> PackedSplit:
    """Images that compress and decode like photographs: clouds of several scales and grain, 640×480."""
    source = folder / "source"
    random = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 1)):
        (source / "images" / split).mkdir(parents=True)
        (source / "labels" / split).mkdir(parents=True)
        drawn = [encode(draw(random)) for _ in range(min(count, DRAWN))]
        for number in range(count):
            (source / f"images/{split}/{number:04d}.jpg").write_bytes(drawn[number % DRAWN])
            rows = np.hstack(
                [np.zeros((8, 1)), random.uniform(0.3, 0.7, (8, 2)), random.uniform(0.05, 0.4, (8, 2))]
            )
            np.savetxt(source / f"labels/{split}/{number:04d}.txt", rows, fmt="%.6f")
    (source / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [thing]\n")
    if pack(["--source", "yolo", "--root", str(source), "--out", str(folder / "packed")]) != 0:
        raise SystemExit("the drawn images could not be packed")
    return PackedSplit(folder / "packed", "train")


def draw(random: np.random.Generator) -> np.ndarray:
    """(480, 640, 3) RGB."""
    canvas = np.zeros((480, 640, 3), dtype=np.float32)
    for cells, strength in ((4, 60), (16, 30), (64, 12)):
        coarse = random.uniform(-1, 1, (cells, cells, 3)) * strength + 128
        cloud = Image.fromarray(coarse.astype(np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        canvas += np.asarray(cloud, dtype=np.float32) - 128
    canvas += 128 + random.normal(0, 7, canvas.shape[:2])[..., None]
    return canvas.clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray) -> bytes:
    """A JPEG as cameras make them: colours at half the resolution."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90, subsampling="4:2:0")
    return stream.getvalue()


class Repeated:
    """A split several times over, with a number of its own for each sample every time."""

    def __init__(self, split: PackedSplit, times: int) -> None:
        self._split = split
        self._times = times

    def __len__(self) -> int:
        return self._times * len(self._split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._split, name)

    def size(self, index: int) -> tuple[int, int]:
        return self._split.size(index % len(self._split))

    def read(self, index: int) -> bytes:
        return self._split.read(index % len(self._split))

    def labels(self, index: int) -> np.ndarray:
        return self._split.labels(index % len(self._split))

    def flags(self, index: int) -> np.ndarray:
        return self._split.flags(index % len(self._split))


def worker(
    split: Repeated, settings: AugmentConfig, ranks: int = 1, workers_a_rank: int = 1
) -> Callable[[], object]:
    """What makes the next part of a batch in one loader worker of many: always ``BATCH`` images."""
    plan = BatchPlan(len(split), BATCH * ranks * workers_a_rank, seed=0, partners=settings.partners)
    assert plan.batches_per_epoch >= (WARM_UP + ROUNDS) * BATCHES_A_ROUND
    rank = ranks // 2
    work = LoadPart(
        split=split,
        max_pixels=LoaderConfig().max_pixels,
        damaged="raise",
        plan=plan,
        augment=settings,
        image_size=SIZE,
        assign=assign_nothing,
        lanes=(plan.lanes(rank, ranks, workers_a_rank - 1, workers_a_rank),),
        first_slot=plan.slots(rank, ranks).start,
        shared=SharedImages.allocate(1, 2, BATCH, SIZE),
    )
    steps = itertools.count()
    return lambda: work(TrainTask(next(steps), part=0, input_size=SIZE))


def load(split: PackedSplit) -> TrainLoader[None]:
    """Batches as the rank gets them, with the default settings."""
    plan = BatchPlan(len(split), BATCH, seed=0)
    settings = LoaderConfig(image_size=SIZE, workers=0)
    return TrainLoader(split, plan, settings, AugmentConfig(), assign_nothing, rank=0, size=1, epochs=1)


def assign_nothing(*_: object) -> None:
    """The assignment is the objective's, and timed with it."""


def device_seconds(batch: TrainBatch) -> float:
    """What colours and mirror take of an image where this core is the device."""
    with_colours = median_seconds(lambda: prepare_images(batch.images, batch.flip, batch.colour_gains))
    return (with_colours - median_seconds(lambda: prepare_images(batch.images))) / BATCH


def median_seconds(operation: Callable[[], object]) -> float:
    """Of seven."""
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def time_interleaved(variants: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each round of each variant, after some to warm up.

    Each round begins with another variant, and every other one goes backwards: none is always the last, nor
    always after the same.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(WARM_UP + ROUNDS):
        first = (number + number % 2) % len(names)
        turns = names[first:] + names[:first]
        for name in reversed(turns) if number % 2 else turns:
            started = time.perf_counter()
            for _ in range(BATCHES_A_ROUND):
                variants[name]()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def milliseconds(parts: list[dict[str, float]], name: str) -> float:
    """What one operation takes of a sample: the median over batches."""
    return 1000 * float(np.median([part[name] for part in parts])) / BATCH


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """How many times as fast as the usual pipeline: the median over rounds."""
    return float(np.median(np.array(seconds["classical"]) / np.array(seconds[name])))


if __name__ == "__main__":
    sys.exit(main())
