"""What training sees, batch by batch, however it is loaded; and a training that is nothing but its data."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hvdyolo.config import AugmentConfig, LoaderConfig, OptimizerConfig
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.checkpoint import TrainingState, save_checkpoint
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.objective.assign import Assigner

# Most slots are mosaics and all are turned: every kind of draw shows in the pixels.
AUGMENT = AugmentConfig(
    mosaic=0.8,
    mosaic_9=0.3,
    degrees=10.0,
    shear=3.0,
    perspective=0.1,
    mixup=0.4,
    copy_paste=0.7,
    cutout=0.3,
    autoaugment="v1",
    flip_up_down=0.5,
)
EXACT = replace(AUGMENT, resampling="exact", colours="workers")
CACHED = replace(AUGMENT, resampling="bilinear", partners="recent", colours="workers")
STREAMS: dict[str, tuple[Literal["exact", "block"], AugmentConfig]] = {
    "exact order": ("exact", AUGMENT),
    "cached in block order": ("block", CACHED),
    "block order": ("block", AUGMENT),
    "exact pixels": ("exact", EXACT),
    "cached": ("exact", CACHED),
}
ASSIGN = Assigner((8, 16, 32), np.full((3, 3, 2), 16, dtype=np.float32), 4.0)
Digest = str


@dataclass(frozen=True)
class Loaded:
    """A global batch: for each of its slots a digest of all that is learnt from it."""

    epoch: int
    batch: int
    slots: list[Digest]


@dataclass(frozen=True)
class Stream:
    """The batches of one training, loaded in whatever way."""

    split: PackedSplit
    plan: BatchPlan
    augment: AugmentConfig
    epochs: int

    @staticmethod
    def of(root: Path, name: str, batch: int, epochs: int) -> "Stream":
        """One of :data:`STREAMS`, of a dataset with polygons."""
        split = PackedSplit(root, "train", outlines=True)
        order, augment = STREAMS[name]
        plan = BatchPlan(len(split), batch, seed=11, order=order, partners=augment.partners)
        return Stream(split, plan, augment, epochs)

    @property
    def schedule(self) -> TrainingSchedule:
        """One batch makes a step, and after three quarters of the training two."""
        settings = OptimizerConfig(
            warmup_epochs=1.5 * self.epochs, warmup_min_batches=1, nominal_batch=2 * self.plan.batch
        )
        return TrainingSchedule(settings, self.epochs, self.plan.batches_per_epoch, self.plan.batch)

    def __len__(self) -> int:
        return self.epochs * self.plan.batches_per_epoch

    def load(
        self,
        ranks: int = 1,
        workers: int = 0,
        start: tuple[int, int] = (0, 0),
        batches: int | None = None,
    ) -> list[Loaded]:
        """So many batches from ``start``, an epoch and a batch, on; by all ranks, one after the other."""
        shares = [
            list(itertools.islice(self._share(rank, ranks, workers, start), batches)) for rank in range(ranks)
        ]
        return [_joined(parts) for parts in zip(*shares, strict=True)]

    def train(self, checkpoints: Path, workers: int = 0) -> Iterator[Loaded]:
        """All batches, on one rank; after those of each step a checkpoint, which says what comes next."""
        model = nn.Linear(1, 1)
        average = MovingAverage(model, decay=0.9, ramp=1.0)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = self._share(0, 1, workers, (0, 0))
        steps = itertools.chain.from_iterable(map(self.schedule.steps, range(self.epochs)))
        for number, (step, upcoming) in enumerate(itertools.pairwise(steps), start=1):
            yield from itertools.islice(batches, step.passes)
            state = TrainingState(
                step=number,
                epoch=upcoming.epoch,
                batch=upcoming.first,
                best_ap=-1.0,
                ema_updates=0,
                dataset=self.split.dataset_id,
                config={},
            )
            save_checkpoint(checkpoints, state, model, average, optimizer, keep=len(self))
        yield from batches

    def _share(self, rank: int, ranks: int, workers: int, start: tuple[int, int]) -> Iterator[Loaded]:
        """One rank's slots of each batch."""
        epoch, batch = start
        sizes = InputSizes(self.schedule, self.plan.seed, image_size=64, stride=32, fraction=0.5)
        with TrainLoader(
            self.split,
            self.plan,
            LoaderConfig(image_size=64, workers=workers),
            self.augment,
            ASSIGN,
            rank=rank,
            size=ranks,
            epochs=self.epochs,
            start_epoch=epoch,
            start_batch=batch,
            input_size=sizes.at,
        ) as loader:
            for loaded in loader:
                yield Loaded(loaded.epoch, loaded.index, slot_digests(loaded))


def short_stream(root: Path, name: str) -> Stream:
    """Of 39 samples, two epochs: 10 batches each, the last one short of a sample; 18 steps in all."""
    return Stream.of(root, name, batch=4, epochs=2)


def _joined(parts: Sequence[Loaded]) -> Loaded:
    """A batch of the ranks' slots of it."""
    ((epoch, batch),) = {(part.epoch, part.batch) for part in parts}
    return Loaded(epoch, batch, [digest for part in parts for digest in part.slots])


def learnt(batch: TrainBatch[Any], slot: int) -> Iterator[np.ndarray]:
    """What the cells of one image are to learn, a level; cells are counted from the image's first."""
    for level, stride in enumerate(ASSIGN.strides):
        cells = 3 * (batch.input_size // stride) ** 2
        for part in batch.matches:
            own = part[level].cell // cells == slot
            yield part[level].cell[own] % cells
            yield part[level].box_cxcywh[own]


def slot_digests(batch: TrainBatch[Any]) -> list[Digest]:
    """Of samples, what was drawn for them and is handed on, pixels, and labels as boxes and as cells."""
    digests = []
    for slot, sample in enumerate(batch.samples):
        digest = hashlib.sha256(f"{batch.epoch} {batch.index} {sample} {batch.input_size}".encode())
        for tensor in (batch.weights, batch.flip, batch.colour_gains, batch.images):
            if tensor is not None:
                digest.update(tensor[slot].numpy().tobytes())
        digest.update(batch.labels[slot].tobytes())
        for label_and_cell in learnt(batch, slot):
            digest.update(label_and_cell.tobytes())
        digests.append(digest.hexdigest())
    return digests
