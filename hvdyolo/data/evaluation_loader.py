"""Batches for evaluation: every image once, letterboxed, loaded by worker processes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import LoaderConfig
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.decoding import pixels_of
from hvdyolo.data.images import letterbox_into
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.work import WorkResults
from hvdyolo.data.worker_count import worker_count
from hvdyolo.ops.letterbox import FILL, Letterbox, fit_letterbox


@dataclass(frozen=True, eq=False)
class EvaluationBatch:
    """Whole images, letterboxed."""

    samples: tuple[int, ...]
    images: Tensor
    """uint8 (B, size, size, 3) RGB."""
    letterboxes: tuple[Letterbox, ...]
    """From each stored image to the input, and back."""
    labels: tuple[NDArray[np.float32], ...]
    """(n, 5) of each image: class, cx, cy, w, h in 0..1 of the stored image; crowds included."""
    flags: tuple[NDArray[np.uint8], ...]
    """(n,) of each image: bit 0 crowd, 1 difficult, 2 truncated."""


class EvaluationLoader:
    """A rank's share of a split, every ``size``-th sample from ``rank`` on, letterboxed.

    Each iteration goes through the share once, with workers of its own.
    """

    def __init__(
        self,
        split: PackedSplit,
        loader: LoaderConfig,
        *,
        image_size: int,
        batch: int,
        rank: int,
        size: int,
    ) -> None:
        share = range(rank, len(split), size)
        parts = (share[first : first + batch] for first in range(0, len(share), batch))
        self._tasks = list(enumerate(parts))
        self._batch = batch
        self.workers = min(worker_count(loader), len(self._tasks))
        self._prefetch = loader.prefetch
        self._work = _LoadLetterboxed(split, loader.max_pixels, image_size)
        self._results: WorkResults[tuple[int, range], EvaluationBatch] | None = None

    def __len__(self) -> int:
        """Batches of an iteration."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Load in order. One iteration at a time: a new one ends the last one's workers."""
        self.close()
        work = self._work if self.workers == 0 else replace(self._work, shared=self._allocate())
        self._results = WorkResults(work, self._tasks, workers=self.workers, prefetch=self._prefetch)
        return self._batches(self._results, work)

    def _allocate(self) -> SharedImages:
        return SharedImages.allocate(self.workers, self._prefetch, self._batch, self._work.image_size)

    def _batches(
        self, results: "WorkResults[tuple[int, range], EvaluationBatch]", work: "_LoadLetterboxed"
    ) -> Iterator[EvaluationBatch]:
        try:
            for (number, samples), batch in zip(self._tasks, results, strict=True):
                if work.shared is None:
                    yield batch
                else:
                    # A copy, for the worker goes on to fill that memory.
                    yield replace(batch, images=work.images(number, len(samples)).clone())
        finally:
            results.close()

    def __enter__(self) -> "EvaluationLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._results is not None:
            self._results.close()


@dataclass(frozen=True)
class _LoadLetterboxed:
    """The work of evaluation's workers: number and samples of a batch to the batch."""

    split: PackedSplit
    max_pixels: int
    image_size: int
    shared: SharedImages | None = None
    """Where workers leave their images."""

    def images(self, number: int, count: int) -> Tensor:
        """Memory for the images of a batch."""
        if self.shared is None:
            return torch.empty((count, self.image_size, self.image_size, 3), dtype=torch.uint8)
        turn, worker = divmod(number, len(self.shared.ring))
        return self.shared.batch(worker, turn, count)

    def __call__(self, task: tuple[int, range], /) -> EvaluationBatch:
        number, samples = task
        letterboxes = tuple(fit_letterbox(*self.split.size(sample), self.image_size) for sample in samples)
        images = self.images(number, len(samples)).fill_(FILL)
        for image, sample, letterbox, encoded in zip(
            images.numpy(), samples, letterboxes, self.split.read_many(samples), strict=True
        ):
            letterbox_into(image, pixels_of(encoded, self.split, sample, self.max_pixels), letterbox)
        return EvaluationBatch(
            samples=tuple(samples),
            # What is shared is not sent.
            images=images if self.shared is None else images[:0].clone(),
            letterboxes=letterboxes,
            labels=tuple(self.split.labels(sample) for sample in samples),
            flags=tuple(self.split.flags(sample) for sample in samples),
        )
