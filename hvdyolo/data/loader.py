"""Batches for training and evaluation, loaded by worker processes.

Worker w of a rank owns the same lanes of every batch, so all workers share each batch, and what a
worker remembers of one batch can serve the next. Workers live as long as the iteration: there is
no gap between epochs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.augment import AugmentedSample, augment
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.format import CROWD
from hvdyolo.data.images import ImageTooLargeError, decode, letterbox_into, resize
from hvdyolo.data.opencv import mirror, require_opencv, scale_colours
from hvdyolo.data.order import RECENT, BatchPlan, SlotEntry
from hvdyolo.data.parameters import draw_parameters
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.data.render import renderer
from hvdyolo.data.work import WorkResults
from hvdyolo.ops.letterbox import FILL, Letterbox, fit_letterbox
from hvdyolo.utils.cores import available_cores
from hvdyolo.utils.errors import DataError

Labels = NDArray[np.float32]
MatchesT = TypeVar("MatchesT")

Assign = Callable[[Sequence[Labels], int, int, int], MatchesT]
"""Of labels (n, 5) of some images, height, width, number of the first in the rank's batch."""

InputSize = Callable[[int, int], int]
"""Of epoch and batch: side of the network's input."""

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
    """uint8 (B, H, W, 3) RGB, of the loader's image size."""
    input_size: int
    """Side of the network's input, to which the images are resized where the network is."""
    weights: Tensor
    """float32 (B,): 0 where a slot only fills the epoch's last batch or its sample is damaged, else 1."""
    flip: Tensor | None
    """bool (B,): images to mirror; their labels are mirrored already. ``None``: so are the images."""
    colour_gains: Tensor | None
    """float32 (B, 3): factors of hue, saturation and value. ``None``: the images have their colours."""
    matches: tuple[MatchesT, ...]
    """What ``assign`` returned for the images in their order at the input's size, a part for each worker."""
    labels: tuple[Labels, ...]
    """(n, 5) of each image: class, cx, cy, w, h in 0..1 of the mirrored input. Weight 0: none."""
    damaged: Mapping[int, str]
    """What is wrong with the damaged samples that were met, partners in mosaics included."""
    skipped: int
    """Slots that would count, but whose sample is damaged."""
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
        input_size: InputSize | None = None,
    ) -> None:
        """Nothing is read, and no worker started, before an iteration.

        ``assign`` runs in the workers: it is picklable, and its module is not the main one. ``input_size``
        runs in this process; without it all inputs are as large as the images.
        """
        slots = plan.slots(rank, size)
        self.workers = min(_workers(loader), len(slots))
        self._prefetch = loader.prefetch
        self._parts = max(1, self.workers)
        self._steps = range(
            start_epoch * plan.batches_per_epoch + start_batch, epochs * plan.batches_per_epoch
        )
        self._plan = plan
        self._input_size = input_size or (lambda epoch, batch: loader.image_size)
        self._work = _LoadPart(
            split=split,
            max_pixels=loader.max_pixels,
            damaged=loader.damaged,
            plan=plan,
            augment=augment,
            image_size=loader.image_size,
            assign=assign,
            lanes=tuple(plan.lanes(rank, size, part, self._parts) for part in range(self._parts)),
            first_slot=slots.start,
        )
        self._results: WorkResults[_TrainTask, _TrainPart[MatchesT]] | None = None

    def __len__(self) -> int:
        """Batches of an iteration."""
        return len(self._steps)

    def __iter__(self) -> Iterator[TrainBatch[MatchesT]]:
        """Load in order. One iteration at a time: a new one ends the last one's workers."""
        self.close()
        work = self._work if self.workers == 0 else replace(self._work, shared=self._allocate())
        self._results = WorkResults(work, self._tasks(), workers=self.workers, prefetch=self._prefetch)
        return self._batches(self._results, work.shared)

    def _allocate(self) -> SharedImages:
        slots = max(len(lanes) for lanes in self._work.lanes)
        return SharedImages.allocate(self.workers, self._prefetch, slots, self._work.image_size)

    def __enter__(self) -> "TrainLoader[MatchesT]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._results is not None:
            self._results.close()

    def _tasks(self) -> "Iterator[_TrainTask]":
        for step in self._steps:
            input_size = self._input_size(*divmod(step, self._plan.batches_per_epoch))
            for part in range(self._parts):
                yield _TrainTask(step, part, input_size)

    def _batches(
        self, results: "WorkResults[_TrainTask, _TrainPart[MatchesT]]", shared: SharedImages | None
    ) -> Iterator[TrainBatch[MatchesT]]:
        try:
            for step in self._steps:
                asked = time.perf_counter()
                parts = [next(results) for _ in range(self._parts)]
                waited = time.perf_counter() - asked
                images = _images(parts, shared, step)
                yield _join(parts, images, *divmod(step, self._plan.batches_per_epoch), waited)
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


@dataclass(frozen=True)
class _TrainTask:
    """A part of a batch that is to be loaded."""

    step: int
    """Batches since the first of epoch 0."""
    part: int
    input_size: int


@dataclass(frozen=True, eq=False)
class _TrainPart(Generic[MatchesT]):
    """What one worker loads of a batch."""

    samples: tuple[int, ...]
    images: Tensor | None
    """``None``: they are in the memory that the worker shares with its rank."""
    input_size: int
    weights: NDArray[np.float32]
    flip: NDArray[np.bool_] | None
    colour_gains: NDArray[np.float32] | None
    matches: MatchesT
    labels: tuple[Labels, ...]
    damaged: Mapping[int, str]
    skipped: int


@dataclass(frozen=True, eq=False)
class _LoadedSlot:
    """One slot's sample, grey and without labels if it is damaged itself."""

    sample: AugmentedSample
    weight: int
    damaged: Mapping[int, str]
    """As of :class:`TrainBatch`."""
    skipped: bool


@dataclass(frozen=True)
class _TrainImages:
    """A split as the augmentation of one slot reads it.

    What was damaged in another slot must not be known here: that would depend on which worker has both.
    """

    split: PackedSplit
    image_size: int
    max_pixels: int
    policy: Literal["raise", "skip"]
    decoded: dict[int, NDArray[np.uint8]] | None
    """Images that were decoded before, for the next who asks; ``None``: they are not kept."""
    damaged: dict[int, str] = field(default_factory=dict)
    """Samples that were left out, and why."""

    def __len__(self) -> int:
        return len(self.split)

    def size(self, index: int) -> tuple[int, int]:
        """Of the image as it is handed out: larger ones come at the network's size, as in evaluation."""
        height, width = self.split.size(index)
        if max(height, width) <= self.image_size:
            return height, width
        fit = fit_letterbox(height, width, self.image_size)
        return fit.resized_height, fit.resized_width

    def image(self, index: int) -> NDArray[np.uint8] | None:
        if self.decoded is not None and (known := self.decoded.get(index)) is not None:
            return known
        try:
            image = _decoded(self.split, index, self.max_pixels)
        except DamagedSampleError as error:
            if self.policy == "raise":
                raise
            self.damaged[index] = str(error)
            return None
        height, width = self.size(index)
        image = resize(image, width, height)
        if self.decoded is not None:
            self.decoded[index] = image
        return image

    def labels(self, index: int) -> Labels:
        # A crowd is a region, not an object: nothing to learn a box from.
        objects: Labels = self.split.labels(index)[self.split.flags(index) & CROWD == 0]
        return objects


@dataclass(frozen=True)
class _LoadPart(Generic[MatchesT]):
    """The work of training's workers."""

    split: PackedSplit
    max_pixels: int
    damaged: Literal["raise", "skip"]
    plan: BatchPlan
    augment: AugmentConfig
    image_size: int
    assign: Assign[MatchesT]
    lanes: tuple[range, ...]
    """Slots of each part."""
    first_slot: int
    """Of the rank: images are numbered from it."""
    shared: SharedImages | None = None
    """Where a worker leaves its images."""
    decoded: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """What the slots may mix in again."""

    def __call__(self, task: _TrainTask, /) -> _TrainPart[MatchesT]:
        epoch, batch = divmod(task.step, self.plan.batches_per_epoch)
        lanes = self.lanes[task.part]
        entries = self.plan.entries(epoch, batch, lanes)
        if self.shared is None:
            images = torch.empty((len(entries), self.image_size, self.image_size, 3), dtype=torch.uint8)
        else:
            images = self.shared.batch(task.part, task.step, len(entries))
        loaded = [self._load(entry, image) for entry, image in zip(entries, images.numpy(), strict=True)]
        self._forget(entries)
        labels = tuple(slot.sample.labels if slot.weight else slot.sample.labels[:0] for slot in loaded)
        on_device = self.augment.colours == "device"
        gains = [slot.sample.colour_gains for slot in loaded]
        return _TrainPart(
            samples=tuple(entry.sample for entry in entries),
            images=images if self.shared is None else None,
            input_size=task.input_size,
            weights=np.array([slot.weight for slot in loaded], dtype=np.float32),
            flip=np.array([slot.sample.flip for slot in loaded]) if on_device else None,
            colour_gains=np.array(gains, dtype=np.float32) if on_device else None,
            matches=self.assign(labels, task.input_size, task.input_size, lanes.start - self.first_slot),
            labels=labels,
            damaged={sample: reason for slot in loaded for sample, reason in slot.damaged.items()},
            skipped=sum(slot.skipped for slot in loaded),
        )

    def _load(self, entry: SlotEntry, output: NDArray[np.uint8]) -> _LoadedSlot:
        generator = sample_generator(self.plan.seed, entry.epoch, entry.position, Purpose.AUGMENTATION)
        decoded = self.decoded if self.plan.partners == "recent" else None
        images = _TrainImages(self.split, self.image_size, self.max_pixels, self.damaged, decoded)
        parameters = draw_parameters(self.augment, entry.sample, entry.partners, generator)
        sample = augment(images, parameters, renderer(self.augment.resampling), output)
        if entry.sample in images.damaged:
            # Its partners go too: they have turns of their own.
            output.fill(FILL)
            grey = replace(sample, labels=sample.labels[:0])
            return _LoadedSlot(grey, 0, images.damaged, skipped=entry.weight == 1)
        if self.augment.colours == "workers":
            scale_colours(output, sample.colour_gains)
            if sample.flip:
                mirror(output)
        return _LoadedSlot(sample, entry.weight, images.damaged, skipped=False)

    def _forget(self, entries: Sequence[SlotEntry]) -> None:
        """Drop the decoded images that no slot can ask for again."""
        if not self.decoded:
            return
        wanted = {entry.sample for entry in entries}
        wanted.update(entry.partners[ago] for entry in entries for ago in range(RECENT - 1))
        for sample in self.decoded.keys() - wanted:
            del self.decoded[sample]


@dataclass(frozen=True)
class _LoadLetterboxed:
    """The work of evaluation's workers: samples to a batch."""

    split: PackedSplit
    max_pixels: int
    image_size: int

    def __call__(self, samples: range, /) -> EvaluationBatch:
        letterboxes = tuple(fit_letterbox(*self.split.size(sample), self.image_size) for sample in samples)
        images = np.full((len(samples), self.image_size, self.image_size, 3), FILL, dtype=np.uint8)
        for image, sample, letterbox, encoded in zip(
            images, samples, letterboxes, self.split.read_many(samples), strict=True
        ):
            letterbox_into(image, _pixels(encoded, self.split, sample, self.max_pixels), letterbox)
        return EvaluationBatch(
            samples=tuple(samples),
            images=torch.from_numpy(images),
            letterboxes=letterboxes,
            labels=tuple(self.split.labels(sample) for sample in samples),
            flags=tuple(self.split.flags(sample) for sample in samples),
        )


def _decoded(split: PackedSplit, index: int, max_pixels: int) -> NDArray[np.uint8]:
    """Pixels of a sample, (H, W, 3), of the size that its record states.

    Raises:
        DamagedSampleError: its bytes are not those that were packed, or no image of that size.
        ImageTooLargeError: it is larger than ``max_pixels``, which is no damage.
    """
    return _pixels(split.read(index), split, index, max_pixels)


def _pixels(
    encoded: bytes | memoryview, split: PackedSplit, index: int, max_pixels: int
) -> NDArray[np.uint8]:
    """As :func:`_decoded`, of a sample that has been read."""
    try:
        image = decode(encoded, max_pixels)
    except ImageTooLargeError as error:
        raise ImageTooLargeError(
            f"{split.describe(index)} {error}; pack the data with --imgsz or raise loader.max_pixels."
        ) from error
    except DataError as error:
        raise DamagedSampleError(f"{split.describe(index)} {error}; pack the data again.") from error
    if image.shape[:2] != tuple(split.size(index)):
        height, width = image.shape[:2]
        raise DamagedSampleError(
            f"{split.describe(index)} has {width} x {height} pixels, but its record says "
            f"{split.size(index)[1]} x {split.size(index)[0]}; pack the data again."
        )
    return image


def _images(parts: "Sequence[_TrainPart[MatchesT]]", shared: SharedImages | None, step: int) -> Tensor:
    """The images of all parts; where these are shared, a copy, for the workers go on to fill that memory."""
    if shared is not None:
        return torch.cat([shared.batch(part, step, len(each.samples)) for part, each in enumerate(parts)])
    (alone,) = parts
    assert alone.images is not None
    return alone.images


def _join(
    parts: "Sequence[_TrainPart[MatchesT]]", images: Tensor, epoch: int, index: int, waited: float
) -> TrainBatch[MatchesT]:
    return TrainBatch(
        epoch=epoch,
        index=index,
        samples=tuple(sample for part in parts for sample in part.samples),
        images=images,
        input_size=parts[0].input_size,
        weights=torch.from_numpy(np.concatenate([part.weights for part in parts])),
        flip=_concatenate([part.flip for part in parts]),
        colour_gains=_concatenate([part.colour_gains for part in parts]),
        matches=tuple(part.matches for part in parts),
        labels=tuple(labels for part in parts for labels in part.labels),
        damaged={sample: reason for part in parts for sample, reason in part.damaged.items()},
        skipped=sum(part.skipped for part in parts),
        wait_seconds=waited,
    )


def _concatenate(parts: Sequence[NDArray[Any] | None]) -> Tensor | None:
    """One tensor of all parts, or ``None`` of those that have none."""
    arrays = [part for part in parts if part is not None]
    return torch.from_numpy(np.concatenate(arrays)) if arrays else None


def check_packages(settings: AugmentConfig) -> None:
    """Check that what the settings need is installed, before any worker meets it.

    Raises:
        UsageError: OpenCV is not.
    """
    renderer(settings.resampling)
    if settings.colours == "workers":
        require_opencv("augment.colours workers")


def with_workers(settings: LoaderConfig, cores: int) -> LoaderConfig:
    """``settings`` with a worker for each of a rank's ``cores``, at most 8, unless they give a number."""
    if settings.workers is not None:
        return settings
    return replace(settings, workers=min(_MOST_WORKERS, cores))


def _workers(settings: LoaderConfig) -> int:
    workers = with_workers(settings, available_cores()).workers
    assert workers is not None
    return workers
