"""Loading for evaluation against the operations that it cannot do without.

    python benchmarks/data_evaluation.py

On one core, with one thread and no workers, from a warm cache. The bare operations are written out below:
decoding, the letterbox, one array a batch; they have the encoded images in memory already, so reading,
checksums and labels are all the loader's own. Loader and bare operations take turns at the same batches, in
changing order; the figure is the ratio of the medians over rounds of each batch, in images a second.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from claims import Claim, report
from data_verify import datasets
from numpy.typing import NDArray

from hvdyolo.config import LoaderConfig
from hvdyolo.data.evaluation_loader import EvaluationLoader
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.resizing import resize_triangle
from hvdyolo.ops.letterbox import FILL

BAR = 0.85
SIZE, BATCH, BATCHES, ROUNDS = 640, 16, 6, 9


def main() -> int:
    """Returns 1 if a claim falls short."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    claims = []
    with tempfile.TemporaryDirectory() as work:
        for title, data in datasets(Path(work)):
            loader, bare = np.median(measure(data), axis=0).sum(0)
            images = BATCH * BATCHES
            print(f"{title}: loader {images / loader:.0f} images/s, bare operations {images / bare:.0f}")
            claims.append(Claim(f"loader / bare operations, {title}", bare / loader, ">=", BAR))
    return report(claims)


def measure(data: Path) -> NDArray[np.float64]:
    """(ROUNDS, BATCHES, 2) seconds of the loader and of the bare operations."""
    split = PackedSplit(data, "train")
    settings = LoaderConfig(workers=0, image_size=SIZE)
    loader = EvaluationLoader(split, settings, image_size=SIZE, batch=BATCH, rank=0, size=1)
    encoded = [split.read(index) for index in range(BATCH * BATCHES)]
    seconds = np.empty((ROUNDS, BATCHES, 2))
    for number in range(ROUNDS):
        batches = iter(loader)
        for place in range(BATCHES):
            samples = encoded[place * BATCH : (place + 1) * BATCH]
            seconds[number, place] = time_batch(batches, samples, (number + place) % 2 == 0)
    return seconds


def time_batch(
    batches: Iterator[object], encoded: Sequence[bytes], loader_first: bool
) -> tuple[float, float]:
    """Seconds of the loader for its next batch, and of the bare operations for the same."""
    bare = 0.0 if loader_first else timed(encoded)
    started = time.perf_counter()
    next(batches)
    loader = time.perf_counter() - started
    return loader, bare or timed(encoded)


def timed(encoded: Sequence[bytes]) -> float:
    """Seconds of the bare operations."""
    started = time.perf_counter()
    torch.from_numpy(np.stack([letterboxed(image) for image in encoded]))
    return time.perf_counter() - started


def letterboxed(encoded: bytes) -> NDArray[np.uint8]:
    """A JPEG in the middle of a grey square, by the resampling of the project."""
    pixels = simplejpeg.decode_jpeg(encoded, "RGB")
    height, width = pixels.shape[:2]
    scale = SIZE / max(height, width)
    across, down = round(width * scale), round(height * scale)
    if (across, down) != (width, height):
        large, pixels = pixels, np.empty((down, across, 3), dtype=np.uint8)
        resize_triangle(large, pixels)
    square = np.full((SIZE, SIZE, 3), FILL, dtype=np.uint8)
    top, left = (SIZE - down) // 2, (SIZE - across) // 2
    square[top : top + down, left : left + across] = pixels
    return square


if __name__ == "__main__":
    sys.exit(main())
