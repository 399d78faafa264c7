"""Batches for evaluation: every image once, letterboxed, loaded by worker processes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import LoaderConfig
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.decoding import pixels_of
from hvdyolo.data.evaluation_batches import InputBatch, rectangular_batches, square_batches
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.resizing import letterbox_into
from hvdyolo.data.work import WorkResults
from hvdyolo.data.worker_count import worker_count
from hvdyolo.ops.letterbox import FILL, Letterbox, fit_letterbox


@dataclass(frozen=True, eq=False)
class EvaluationBatch:
    """Whole images, letterboxed."""

    samples: tuple[int, ...]
    images: Tensor
    """uint8 (B, H, W, 3) RGB."""
    letterboxes: tuple[Letterbox, ...]
    """From each stored image to the input, and back."""
    labels: tuple[NDArray[np.float32], ...]
    """(n, 5) of each image: class, cx, cy, w, h in 0..1 of the stored image; crowds included."""
    flags: tuple[NDArray[np.uint8], ...]
    """(n,) of each image: bit 0 crowd, 1 difficult, 2 truncated."""


class EvaluationLoader:
    """A rank's share of a split, letterboxed to squares of ``image_size``, or to rectangles of like images.

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
        multiple: int | None = None,
    ) -> None:
        """``multiple``: of the sides of rectangles, pixels; without it, inputs are squares."""
        if multiple is None:
            share = square_batches(split, image_size, batch, rank, size)
        else:
            share = rectangular_batches(split, image_size, batch, multiple, rank, size)
        self._tasks = list(enumerate(share))
        self._batch = batch
        self.workers = min(worker_count(loader), len(self._tasks))
        self._prefetch = loader.prefetch
        self._work = _LoadLetterboxed(split, loader.max_pixels, image_size)
        self._results: WorkResults[tuple[int, InputBatch], EvaluationBatch] | None = None

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
        self, results: "WorkResults[tuple[int, InputBatch], EvaluationBatch]", work: "_LoadLetterboxed"
    ) -> Iterator[EvaluationBatch]:
        try:
            for (number, inputs), batch in zip(self._tasks, results, strict=True):
                if work.shared is None:
                    yield batch
                else:
                    # A copy, for the worker goes on to fill that memory.
                    yield replace(batch, images=work.images(number, inputs).clone())
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

    def images(self, number: int, inputs: InputBatch) -> Tensor:
        """Memory for the images of a batch."""
        shape = (len(inputs.samples), inputs.height, inputs.width, 3)
        if self.shared is None:
            return torch.empty(shape, dtype=torch.uint8)
        turn, worker = divmod(number, len(self.shared.ring))
        # A rectangle takes the beginning of what is there for squares.
        memory = self.shared.batch(worker, turn, len(inputs.samples)).flatten()
        return memory[: math.prod(shape)].view(shape)

    def __call__(self, task: tuple[int, InputBatch], /) -> EvaluationBatch:
        number, inputs = task
        samples = inputs.samples
        letterboxes = tuple(
            fit_letterbox(*self.split.size(sample), self.image_size).within(inputs.height, inputs.width)
            for sample in samples
        )
        images = self.images(number, inputs).fill_(FILL)
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
