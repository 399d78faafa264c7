"""Batches for training, loaded by worker processes.

Worker w of a rank owns the same lanes of every batch, so all workers share each batch, and what a
worker remembers of one batch can serve the next. Workers live as long as the iteration: there is
no gap between epochs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.ahead import Ahead
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.render import renderer
from hvdyolo.data.train_part import Assign, Labels, LoadPart, MatchesT, TrainPart, TrainTask
from hvdyolo.data.work import WorkResults
from hvdyolo.data.worker_count import worker_count
from hvdyolo.ops.compiled import compiled, require_compiled

InputSize = Callable[[int, int], int]
"""Of epoch and batch: side of the network's input."""
DrawSamples = Callable[[int, range], NDArray[np.int64]]
"""Of an epoch and n positions in it: (n, 1 + m) the sample of each, and m that may be mixed into it."""


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
        draw: DrawSamples | None = None,
        pinned: bool = False,
    ) -> None:
        """Nothing is read, and no worker started, before an iteration.

        ``assign`` runs in the workers: it is picklable, and its module is not the main one. ``input_size``
        runs in this process; without it all inputs are as large as the images. So does ``draw``; without it
        samples are those of the plan. ``pinned`` puts what workers loaded into memory from which a GPU copies
        on its own; it is torch's, which keeps it for later batches. A thread does that for the next
        ``loader.prefetch`` batches, and calls both functions. Without workers nothing is pinned.
        """
        slots = plan.slots(rank, size)
        self.workers = min(worker_count(loader), len(slots))
        self._prefetch = loader.prefetch
        self._pinned = pinned
        self._parts = max(1, self.workers)
        self._steps = range(
            start_epoch * plan.batches_per_epoch + start_batch, epochs * plan.batches_per_epoch
        )
        self._plan = plan
        self._input_size = input_size or (lambda epoch, batch: loader.image_size)
        self._draw = draw
        self._work = LoadPart(
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
        self._results: WorkResults[TrainTask, TrainPart[MatchesT]] | None = None
        self._ahead: Ahead[TrainBatch[MatchesT]] | None = None

    def __len__(self) -> int:
        """Batches of an iteration."""
        return len(self._steps)

    def __iter__(self) -> Iterator[TrainBatch[MatchesT]]:
        """Load in order. One iteration at a time: a new one ends the last one's workers."""
        self.close()
        work = self._work if self.workers == 0 else replace(self._work, shared=self._allocate())
        self._results = WorkResults(work, self._tasks(), workers=self.workers, prefetch=self._prefetch)
        batches = self._batches(self._results, work.shared)
        if work.shared is None or not self._pinned:
            return batches
        # Copying takes 10 ms for 32 images of 640 pixels, in which no kernel would be launched.
        self._ahead = Ahead(batches, self._prefetch)
        return _waited_for(self._ahead)

    def _allocate(self) -> SharedImages:
        slots = max(len(lanes) for lanes in self._work.lanes)
        return SharedImages.allocate(self.workers, self._prefetch, slots, self._work.image_size)

    def __enter__(self) -> "TrainLoader[MatchesT]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._results is None:
            return
        if self._ahead is not None:
            self._ahead.close(unblock=self._results.kill)
        self._results.close()

    def _tasks(self) -> Iterator[TrainTask]:
        for step in self._steps:
            input_size = self._input_size(*divmod(step, self._plan.batches_per_epoch))
            for part in range(self._parts):
                yield TrainTask(step, part, input_size, self._drawn(step, part))

    def _drawn(self, step: int, part: int) -> NDArray[np.int64] | None:
        if self._draw is None:
            return None
        epoch, batch = divmod(step, self._plan.batches_per_epoch)
        lanes, first = self._work.lanes[part], batch * self._plan.batch
        return self._draw(epoch, range(first + lanes.start, first + lanes.stop))

    def _batches(
        self, results: WorkResults[TrainTask, TrainPart[MatchesT]], shared: SharedImages | None
    ) -> Iterator[TrainBatch[MatchesT]]:
        try:
            for step in self._steps:
                asked = time.perf_counter()
                parts = [next(results) for _ in range(self._parts)]
                waited = time.perf_counter() - asked
                images = _images(parts, shared, step, self._pinned)
                yield _join(parts, images, *divmod(step, self._plan.batches_per_epoch), waited)
        finally:
            results.close()


def _waited_for(batches: Iterator[TrainBatch[MatchesT]]) -> Iterator[TrainBatch[MatchesT]]:
    """The same, with how long each was waited for here."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield replace(batch, wait_seconds=time.perf_counter() - asked)


def _images(
    parts: Sequence[TrainPart[MatchesT]], shared: SharedImages | None, step: int, pinned: bool
) -> Tensor:
    """The images of all parts; where these are shared, a copy, for the workers go on to fill that memory."""
    if shared is not None:
        images = [shared.batch(part, step, len(each.samples)) for part, each in enumerate(parts)]
        batch = torch.empty(
            (sum(map(len, images)), *images[0].shape[1:]), dtype=torch.uint8, pin_memory=pinned
        )
        return torch.cat(images, out=batch)
    (alone,) = parts
    assert alone.images is not None
    return alone.images


def _join(
    parts: Sequence[TrainPart[MatchesT]], images: Tensor, epoch: int, index: int, waited: float
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
        UsageError: OpenCV is not, or functions were not compiled.
    """
    renderer(settings.resampling)
    if settings.colours == "workers":
        require_compiled("colours", "augment.colours workers")


def with_colours(settings: AugmentConfig, device: torch.device) -> AugmentConfig:
    """``settings`` with colours changed where that is fastest for a network on ``device``, unless said."""
    if settings.colours != "auto":
        return settings
    by_workers = device.type == "cpu" and compiled("colours") is not None
    return replace(settings, colours="workers" if by_workers else "device")
