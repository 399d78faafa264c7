"""Everything between a batch and the updated weights, on any communicator and on batches that are drawn."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from hvdyolo.config import LossConfig, OptimizerConfig
from hvdyolo.data.loader import TrainBatch
from hvdyolo.data.order import BatchPlan
from hvdyolo.distributed.sync_batch_norm import convert_sync_batch_norm
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Report, StepFeed
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.precision import Precision, gradient_scaler
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.engine.training_parts import build_assigner, count_cells
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.models.description import read_description
from hvdyolo.objective.class_weights import class_weights

SIZE = 64
CLASSES = 3
EMA_DECAY, EMA_RAMP = 0.9, 10.0


@dataclass(frozen=True)
class Course:
    """What is learnt: ``steps`` an epoch, of ``passes`` batches of ``images`` each.

    Images that only fill a batch are one in eight, wherever, or those behind the last of ``samples``.
    """

    images: int = 8
    passes: int = 1
    steps: int = 3
    epochs: int = 1
    sizes: tuple[int, ...] = (SIZE, SIZE + 32)  # of the network's input, from step to step
    samples: int | None = None  # of an epoch, in as many batches as they need; by default all batches' images
    factors: Mapping[str, float] = field(default_factory=dict)
    nominal_batch: int | None = None  # by default the images of a step
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(warmup_epochs=0.0, clip_norm=1e9, lr=0.01)
    )

    @property
    def batches(self) -> int:
        return self.steps * self.passes if self.samples is None else -(-self.samples // self.images)

    def drawing(self, number: int) -> "Drawing":
        """The image with this number, of all that the batches hold one after the other."""
        place = number % (self.batches * self.images)
        return Drawing.of(number, number % 8 == 6 if self.samples is None else place >= self.samples)


@dataclass(frozen=True)
class Drawing:
    """One image: noise, with a number of boxes that differs from image to image."""

    pixels: np.ndarray
    weight: float
    labels: np.ndarray  # (n, 5): class, cx, cy, w, h

    @classmethod
    def of(cls, number: int, fills: bool) -> "Drawing":
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
        weight = 0.0 if fills else 1.0
        boxes = int(weight) * (number % 4)
        centres = random.uniform(0.2, 0.8, (boxes, 2))
        sides = random.uniform(0.1, 0.4, (boxes, 2))
        classes = random.integers(0, CLASSES, (boxes, 1))
        return cls(pixels, weight, np.hstack([classes, centres, sides]).astype(np.float32))


class Rehearsal:
    """A learner of a copy of ``start`` with its feed, as training has them."""

    def __init__(
        self,
        comm,
        start: DetectionModel,
        course: Course,
        *,
        synchronised: bool = False,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.comm = comm
        self.course = course
        self.device = torch.device(device)
        self.model = copy.deepcopy(start).to(self.device)
        nominal_batch = course.nominal_batch or course.images * course.passes
        settings = replace(course.optimizer, nominal_batch=nominal_batch)
        schedule = TrainingSchedule(settings, course.epochs, course.batches, course.images)
        optimizer = build_optimizer(self.model, schedule.resolved, course.factors)
        average = MovingAverage(self.model, EMA_DECAY, EMA_RAMP)
        if synchronised:
            convert_sync_batch_norm(self.model, comm)
        self.learner = Learner(
            model=self.model,
            average=average,
            optimizer=optimizer,
            reduction=comm.reduce_gradients(optimizer, self.model),
            schedule=schedule,
            loss=course.loss,
            clip_norm=schedule.resolved.clip_norm,
            device=self.device,
            beacon=Beacon(),
            precision=precision,
            scaler=gradient_scaler(precision, self.device, "none"),
            class_weights=class_weights(course.loss.class_weights, np.ones(CLASSES, dtype=np.int64)),
        )
        plan = BatchPlan(samples=10**6, batch=course.images, seed=0)
        self.slots = plan.slots(comm.world.rank, comm.world.size)
        ranges = (step for epoch in range(course.epochs) for step in schedule.steps(epoch))
        self.feed = StepFeed(self._batches(), ranges, comm, count_cells(self.model, len(self.slots)))

    def _batches(self) -> Iterator[TrainBatch]:
        assign = build_assigner(self.model, 4.0)
        for number in range(self.course.epochs * self.course.batches):
            first = number * self.course.images
            drawings = [self.course.drawing(first + slot) for slot in self.slots]
            labels = [drawing.labels for drawing in drawings]
            step = number // self.course.passes
            input_size = self.course.sizes[step % len(self.course.sizes)]
            yield TrainBatch(
                epoch=number // self.course.batches,
                index=number % self.course.batches,
                samples=tuple(self.slots),
                images=torch.from_numpy(np.stack([drawing.pixels for drawing in drawings])),
                input_size=input_size,
                weights=torch.tensor([drawing.weight for drawing in drawings]),
                flip=torch.zeros(len(drawings), dtype=torch.bool),
                colour_gains=torch.ones(len(drawings), 3),
                matches=(assign(labels, input_size, input_size, 0),),
                labels=tuple(labels),
                damaged={},
                skipped=0,
                wait_seconds=0.0,
            )

    def steps(self) -> Iterator[Tensor]:
        """Take the steps one by one; yields each one's losses."""
        upcoming = self.feed.next(Report(False, torch.zeros(3)))
        while upcoming.range is not None:
            step = upcoming.agree(self.device)
            upcoming = self.feed.next(Report(False, torch.zeros(3)))
            yield self.learner.train_step(step)

    def train(self) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """The first step's summed gradient, and the weights after each step."""
        gradient: dict[str, Tensor] = {}
        wait = self.learner.reduction.wait

        def remember() -> None:
            wait()
            if not gradient:
                named = self.model.named_parameters()
                gradient.update({name: value.grad.clone() for name, value in named if value.grad is not None})

        self.learner.reduction.wait = remember  # type: ignore[method-assign]
        return gradient, [self.weights() for _ in self.steps()]

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}


def narrow_model(folder: Path) -> DetectionModel:
    """All rows of YOLOv5n, at a quarter of its width: a sixteenth of the arithmetic."""
    file = folder / "narrow.yaml"
    file.write_text(yaml.safe_dump({**read_description("yolov5n"), "width_multiple": 0.0625}))
    torch.manual_seed(3)
    model = build_model(file, CLASSES)
    model.image_size = SIZE
    return model.train()


def assert_close(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float = 1e-9
) -> None:
    """Each tensor's difference is small against its norm."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        error = (value.double() - found[name].to(value).double()).norm() / value.double().norm().clamp_min(
            1e-30
        )
        assert error < tolerance, f"{name}: relative error {error:.2e}"
