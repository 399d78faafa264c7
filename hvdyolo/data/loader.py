"""Batches for training and evaluation, loaded by worker processes.

Worker w of a rank owns the same lanes of every batch, so all workers share each batch, and what a
worker remembers of one batch can serve the next. Workers live as long as the iteration: there is
no gap between epochs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.augment import AugmentedSample, augment, draw_parameters
from hvdyolo.data.format import CROWD
from hvdyolo.data.images import decode, letterbox_image
from hvdyolo.data.order import BatchPlan, SlotEntry
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.work import WorkResults
from hvdyolo.ops.letterbox import Letterbox, fit_letterbox
from hvdyolo.utils.cores import available_cores
from hvdyolo.utils.errors import DataError

Labels = NDArray[np.float32]
MatchesT = TypeVar("MatchesT")

Assign = Callable[[Sequence[Labels], int, int, int], MatchesT]
"""Of labels (n, 5) of some images, height, width, number of the first in the rank's batch."""

_MOST_WORKERS = 8


@dataclass(frozen=True, eq=False)
class TrainBatch(Generic[MatchesT]):
    """One rank's slots of one global batch."""

    epoch: int
    index: int
    """Batch within the epoch."""
    samples: tuple[int, ...]
    """Sample of each slot; of a mosaic, the one whose turn it is."""
    images: Tensor
    """uint8 (B, H, W, 3) RGB, before colour and flip."""
    weights: Tensor
    """float32 (B,): 0 where a slot only fills the epoch's last batch, else 1."""
    flip: Tensor
    """bool (B,): images to mirror; their labels are mirrored already."""
    colour_gains: Tensor
    """float32 (B, 3): factors of hue, saturation and value."""
    matches: tuple[MatchesT, ...]
    """What ``assign`` returned for the images in their order, a part for each worker."""
    labels: tuple[Labels, ...]
    """(n, 5) of each image: class, cx, cy, w, h in 0..1 of the mirrored input. Weight 0: none."""
    wait_seconds: float
    """How long the consumer waited."""


@dataclass(frozen=True, eq=False)
class EvaluationBatch:
    """Whole images, letterboxed."""

    samples: tuple[int, ...]
    images: Tensor
    """uint8 (B, size, size, 3) RGB."""
    letterboxes: tuple[Letterbox, ...]
    """From each stored image to the input, and back."""
    labels: tuple[Labels, ...]
    """(n, 5) of each image: class, cx, cy, w, h in 0..1 of the stored image; crowds included."""
    flags: tuple[NDArray[np.uint8], ...]
    """(n,) of each image: bit 0 crowd, 1 difficult, 2 truncated."""


class TrainLoader(Generic[MatchesT]):
    """Augmented batches from (``start_epoch``, ``start_batch``) to the end of epoch ``epochs`` - 1.

    What a batch holds follows from plan, augmentation and data: not from the number of workers,
    nor from where the loader started, nor, taken over all ranks, from their number.
    """

    def __init__(
        self,
        split: PackedSplit,
        plan: BatchPlan,
        loader: LoaderConfig,
        augment: AugmentConfig,
        assign: Assign[MatchesT],
        *,
        rank: int,
        size: int,
        epochs: int,
        start_epoch: int = 0,
        start_batch: int = 0,
    ) -> None:
        """Nothing is read, and no worker started, before an iteration.

        ``assign`` runs in the workers: it is picklable, and its module is not the main one.
        """
        slots = plan.slots(rank, size)
        self.workers = min(_workers(loader), len(slots))
        self._prefetch = loader.prefetch
        self._parts = max(1, self.workers)
        self._steps = range(
            start_epoch * plan.batches_per_epoch + start_batch, epochs * plan.batches_per_epoch
        )
        self._plan = plan
        self._work = _LoadPart(
            images=_TrainImages(split, loader.max_pixels),
            plan=plan,
            augment=augment,
            image_size=loader.image_size,
            assign=assign,
            lanes=tuple(plan.lanes(rank, size, part, self._parts) for part in range(self._parts)),
            first_slot=slots.start,
        )
        self._results: WorkResults[tuple[int, int], _TrainPart[MatchesT]] | None = None

    def __len__(self) -> int:
        """Batches of an iteration."""
        return len(self._steps)

    def __iter__(self) -> Iterator[TrainBatch[MatchesT]]:
        """Load in order. One iteration at a time: a new one ends the last one's workers."""
        self.close()
        tasks = ((step, part) for step in self._steps for part in range(self._parts))
        self._results = WorkResults(self._work, tasks, workers=self.workers, prefetch=self._prefetch)
        return self._batches(self._results)

    def __enter__(self) -> "TrainLoader[MatchesT]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._results is not None:
            self._results.close()

    def _batches(
        self, results: "WorkResults[tuple[int, int], _TrainPart[MatchesT]]"
    ) -> Iterator[TrainBatch[MatchesT]]:
        try:
            for step in self._steps:
                asked = time.perf_counter()
                parts = [next(results) for _ in range(self._parts)]
                waited = time.perf_counter() - asked
                yield _join(parts, *divmod(step, self._plan.batches_per_epoch), waited)
        finally:
            results.close()


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
        self._tasks = [share[first : first + batch] for first in range(0, len(share), batch)]
        self.workers = min(_workers(loader), len(self._tasks))
        self._prefetch = loader.prefetch
        self._work = _LoadLetterboxed(split, loader.max_pixels, image_size)
        self._results: WorkResults[range, EvaluationBatch] | None = None

    def __len__(self) -> int:
        """Batches of an iteration."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Load in order. One iteration at a time: a new one ends the last one's workers."""
        self.close()
        self._results = WorkResults(self._work, self._tasks, workers=self.workers, prefetch=self._prefetch)
        return self._results

    def __enter__(self) -> "EvaluationLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._results is not None:
            self._results.close()


@dataclass(frozen=True, eq=False)
class _TrainPart(Generic[MatchesT]):
    """What one worker loads of a batch; small but for the images, which go by shared memory."""

    samples: tuple[int, ...]
    images: Tensor
    weights: NDArray[np.float32]
    flip: NDArray[np.bool_]
    colour_gains: NDArray[np.float32]
    matches: MatchesT
    labels: tuple[Labels, ...]


@dataclass(frozen=True)
class _TrainImages:
    """A split as augmentation reads it."""

    split: PackedSplit
    max_pixels: int

    def __len__(self) -> int:
        return len(self.split)

    def size(self, index: int) -> tuple[int, int]:
        return self.split.size(index)

    def image(self, index: int) -> NDArray[np.uint8]:
        return _decoded(self.split, index, self.max_pixels)

    def labels(self, index: int) -> Labels:
        # A crowd is a region, not an object: nothing to learn a box from.
        objects: Labels = self.split.labels(index)[self.split.flags(index) & CROWD == 0]
        return objects


@dataclass(frozen=True)
class _LoadPart(Generic[MatchesT]):
    """The work of training's workers: (step, part) to that part of the step's batch."""

    images: _TrainImages
    plan: BatchPlan
    augment: AugmentConfig
    image_size: int
    assign: Assign[MatchesT]
    lanes: tuple[range, ...]
    """Slots of each part."""
    first_slot: int
    """Of the rank: images are numbered from it."""

    def __call__(self, task: tuple[int, int], /) -> _TrainPart[MatchesT]:
        step, part = task
        epoch, batch = divmod(step, self.plan.batches_per_epoch)
        lanes = self.lanes[part]
        entries = self.plan.entries(epoch, batch, lanes)
        loaded = [self._load(entry) for entry in entries]
        labels = tuple(
            sample.labels if entry.weight else sample.labels[:0]
            for entry, sample in zip(entries, loaded, strict=True)
        )
        return _TrainPart(
            samples=tuple(entry.sample for entry in entries),
            images=torch.from_numpy(np.stack([sample.image for sample in loaded])),
            weights=np.array([entry.weight for entry in entries], dtype=np.float32),
            flip=np.array([sample.flip for sample in loaded]),
            colour_gains=np.stack([sample.colour_gains for sample in loaded]),
            matches=self.assign(labels, self.image_size, self.image_size, lanes.start - self.first_slot),
            labels=labels,
        )

    def _load(self, entry: SlotEntry) -> AugmentedSample:
        generator = sample_generator(self.plan.seed, entry.epoch, entry.position, Purpose.AUGMENTATION)
        parameters = draw_parameters(self.augment, entry.sample, entry.partners, generator)
        return augment(self.images, parameters, self.image_size)


@dataclass(frozen=True)
class _LoadLetterboxed:
    """The work of evaluation's workers: samples to a batch."""

    split: PackedSplit
    max_pixels: int
    image_size: int

    def __call__(self, samples: range, /) -> EvaluationBatch:
        letterboxes = tuple(fit_letterbox(*self.split.size(sample), self.image_size) for sample in samples)
        images = [
            letterbox_image(_decoded(self.split, sample, self.max_pixels), letterbox)
            for sample, letterbox in zip(samples, letterboxes, strict=True)
        ]
        return EvaluationBatch(
            samples=tuple(samples),
            images=torch.from_numpy(np.stack(images)),
            letterboxes=letterboxes,
            labels=tuple(self.split.labels(sample) for sample in samples),
            flags=tuple(self.split.flags(sample) for sample in samples),
        )


def _decoded(split: PackedSplit, index: int, max_pixels: int) -> NDArray[np.uint8]:
    """Pixels of a sample, (H, W, 3), of the size that its record states."""
    encoded = split.read(index)
    try:
        image = decode(encoded, max_pixels)
    except DataError as error:
        raise DataError(f"{split.name(index)}: {error}") from error
    if image.shape[:2] != tuple(split.size(index)):
        height, width = image.shape[:2]
        raise DataError(
            f"{split.name(index)}: the image is {width} x {height} pixels, but its record says "
            f"{split.size(index)[1]} x {split.size(index)[0]}: pack the split again."
        )
    return image


def _join(
    parts: "Sequence[_TrainPart[MatchesT]]", epoch: int, index: int, waited: float
) -> TrainBatch[MatchesT]:
    images = [part.images for part in parts]
    return TrainBatch(
        epoch=epoch,
        index=index,
        samples=tuple(sample for part in parts for sample in part.samples),
        images=images[0] if len(images) == 1 else torch.cat(images),
        weights=torch.from_numpy(np.concatenate([part.weights for part in parts])),
        flip=torch.from_numpy(np.concatenate([part.flip for part in parts])),
        colour_gains=torch.from_numpy(np.concatenate([part.colour_gains for part in parts])),
        matches=tuple(part.matches for part in parts),
        labels=tuple(labels for part in parts for labels in part.labels),
        wait_seconds=waited,
    )


def _workers(loader: LoaderConfig) -> int:
    if loader.workers is not None:
        return loader.workers
    return min(_MOST_WORKERS, available_cores())
