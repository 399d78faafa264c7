"""One worker's part of a training batch: augmented samples, and what is assigned to their labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import AugmentConfig
from hvdyolo.data.augment import AugmentedSample, augment
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.decoding import read_pixels, read_top
from hvdyolo.data.format import CROWD
from hvdyolo.data.order import RECENT, BatchPlan, SlotEntry
from hvdyolo.data.outlines import Outlines
from hvdyolo.data.parameters import draw_parameters
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.data.render import renderer
from hvdyolo.data.resizing import resize_triangle
from hvdyolo.ops.colours import mirror, scale_colours
from hvdyolo.ops.letterbox import FILL, fit_letterbox

Labels = NDArray[np.float32]
MatchesT = TypeVar("MatchesT")

Assign = Callable[[Sequence[Labels], int, int, int], MatchesT]
"""Of labels (n, 5) of some images, height, width, number of the first in the rank's batch."""


@dataclass(frozen=True, eq=False)
class TrainTask:
    """A part of a batch that is to be loaded."""

    step: int
    """Batches since the first of epoch 0."""
    part: int
    input_size: int
    drawn: NDArray[np.int64] | None = None
    """(slots, 1 + m) for each slot its sample and those that may be mixed into it; ``None``: the plan's."""


@dataclass(frozen=True, eq=False)
class TrainPart(Generic[MatchesT]):
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
    """What is wrong with the damaged samples that were met, partners in mosaics included."""
    skipped: int
    """Slots that would count, but whose sample is damaged."""


@dataclass(frozen=True, eq=False)
class _LoadedSlot:
    """One slot's sample, grey and without labels if it is damaged itself."""

    sample: AugmentedSample
    weight: int
    damaged: Mapping[int, str]
    """As of :class:`TrainPart`."""
    skipped: bool


@dataclass(frozen=True)
class _TrainImages:
    """A split as the augmentation of one slot reads it.

    What was damaged in another slot must not be known here: that would depend on which worker has both.
    """

    split: PackedSplit
    largest: int | None
    """Longer side of the images that are handed out: larger ones are shrunk first; ``None``: as they are."""
    max_pixels: int
    policy: Literal["raise", "skip"]
    decoded: dict[int, NDArray[np.uint8]] | None
    """Images that were decoded before, for the next who asks; ``None``: they are not kept."""
    coarse: bool = False
    """How they are decoded, as of :func:`hvdyolo.data.images.decode`."""
    damaged: dict[int, str] = field(default_factory=dict)
    """Samples that were left out, and why."""

    def __len__(self) -> int:
        return len(self.split)

    def size(self, index: int) -> tuple[int, int]:
        """Of the image as it is handed out, shrunk as evaluation does it."""
        height, width = self.split.size(index)
        if self.largest is None or max(height, width) <= self.largest:
            return height, width
        fit = fit_letterbox(height, width, self.largest)
        return fit.resized_height, fit.resized_width

    def image(self, index: int, rows: int) -> NDArray[np.uint8] | None:
        if self.decoded is not None and (known := self.decoded.get(index)) is not None:
            return known
        # Who asks for a kept one next needs other rows, and a smaller one is made of all.
        whole = self.decoded is not None or self.size(index) != tuple(self.split.size(index))
        try:
            if whole:
                image = read_pixels(self.split, index, self.max_pixels, coarse=self.coarse)
            else:
                image = read_top(self.split, index, self.max_pixels, rows, coarse=self.coarse)
        except DamagedSampleError as error:
            if self.policy == "raise":
                raise
            self.damaged[index] = str(error)
            return None
        if whole and image.shape[:2] != self.size(index):
            large, image = image, np.empty((*self.size(index), 3), dtype=np.uint8)
            resize_triangle(large, image)
        if self.decoded is not None:
            self.decoded[index] = image
        return image

    def labels(self, index: int) -> Labels:
        labels, are_objects = self.split.labels(index), self._are_objects(index)
        return labels if np.count_nonzero(are_objects) == len(labels) else labels[are_objects]

    def outlines(self, index: int) -> Outlines:
        are_objects = self._are_objects(index)
        try:
            outlines = self.split.outlines(index)
        except DamagedSampleError as error:
            if self.policy == "raise":
                raise
            self.damaged[index] = str(error)
            return [()] * int(are_objects.sum())
        return [outline for outline, is_object in zip(outlines, are_objects, strict=True) if is_object]

    def _are_objects(self, index: int) -> NDArray[np.bool_]:
        """(n,): a crowd is a region, not an object: nothing to learn a box from."""
        are_objects: NDArray[np.bool_] = self.split.flags(index) & CROWD == 0
        return are_objects


@dataclass(frozen=True)
class LoadPart(Generic[MatchesT]):
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

    def __call__(self, task: TrainTask, /) -> TrainPart[MatchesT]:
        epoch, batch = divmod(task.step, self.plan.batches_per_epoch)
        lanes = self.lanes[task.part]
        entries = self.plan.entries(epoch, batch, lanes)
        if task.drawn is not None:
            entries = [
                replace(entry, sample=sample, partners=tuple(partners))
                for entry, (sample, *partners) in zip(entries, task.drawn.tolist(), strict=True)
            ]
        if self.shared is None:
            images = torch.empty((len(entries), self.image_size, self.image_size, 3), dtype=torch.uint8)
        else:
            images = self.shared.batch(task.part, task.step, len(entries))
        loaded = [self._load(entry, image) for entry, image in zip(entries, images.numpy(), strict=True)]
        self._forget(entries)
        labels = tuple(slot.sample.labels if slot.weight else slot.sample.labels[:0] for slot in loaded)
        on_device = self.augment.colours != "workers"
        gains = [slot.sample.colour_gains for slot in loaded]
        return TrainPart(
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
        drawn_by = renderer(self.augment.resampling)
        decoded = self.decoded if self.plan.partners == "recent" else None
        # What is kept takes memory, and what cannot be shrunk while it is drawn has to be before.
        largest = None if drawn_by.shrinks and decoded is None else self.image_size
        coarse = self.augment.decoding == "coarse"
        images = _TrainImages(self.split, largest, self.max_pixels, self.damaged, decoded, coarse)
        parameters = draw_parameters(self.augment, entry.sample, entry.partners, generator)
        sample = augment(images, parameters, drawn_by, output)
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
