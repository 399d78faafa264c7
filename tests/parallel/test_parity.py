"""The number of ranks changes the time, not the result.

Started on R ranks, the real step feed, learner, loss and gradient reduction train on R shares of a batch of
eight images. The same parts in one process, without Horovod, train on the whole batch. Gradients and the
first updates agree to 1e-9 in double precision. Batch norm is frozen: it alone looks at a rank's own
images only.
"""

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from hvdyolo.config import LossConfig, OptimizerConfig
from hvdyolo.data.loader import TrainBatch
from hvdyolo.data.order import BatchPlan
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Report, StepFeed
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.engine.training import build_assigner, count_cells
from hvdyolo.engine.transfer import freeze, read_lr_factors
from hvdyolo.models.build import DetectionModel, build_model

SIZE = 64
IMAGES = 8
STEPS = 3
CLASSES = 3


class Rehearsal:
    """Everything between a batch and the updated weights, on one communicator.

    ``passes`` batches are accumulated into a step; ``images`` is the size of each.
    """

    def __init__(
        self,
        comm,
        start: DetectionModel,
        images: int,
        passes: int,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.comm = comm
        self.images = images
        self.passes = passes
        self.model = copy.deepcopy(start)
        settings = OptimizerConfig(nominal_batch=images * passes, warmup_epochs=0.0, clip_norm=1e9, lr=0.01)
        schedule = TrainingSchedule(settings, epochs=1, batches=STEPS * passes, batch=images)
        optimizer = build_optimizer(self.model, settings.lr, settings.momentum, 5e-4, factors)
        self.learner = Learner(
            model=self.model,
            average=MovingAverage(self.model, 0.9, 10),
            optimizer=optimizer,
            reduction=comm.reduce_gradients(optimizer, self.model),
            schedule=schedule,
            loss=LossConfig(),
            clip_norm=settings.clip_norm,
            device=torch.device("cpu"),
            beacon=Beacon(),
        )
        plan = BatchPlan(samples=10**6, batch=images, seed=0)
        self.slots = plan.slots(comm.world.rank, comm.world.size)
        self.feed = StepFeed(
            self._batches(), schedule.steps(0), comm, count_cells(self.model, len(self.slots))
        )

    def _batches(self) -> Iterator[TrainBatch]:
        assign = build_assigner(self.model, 4.0)
        for index in range(STEPS * self.passes):
            labels, weights = [], []
            pixels = np.empty((len(self.slots), SIZE, SIZE, 3), dtype=np.uint8)
            for place, slot in enumerate(self.slots):
                image = index * self.images + slot
                random = np.random.default_rng(image)
                pixels[place] = random.integers(0, 256, pixels[place].shape)
                # Different numbers of boxes on every image, so ranks' counts differ; the seventh only fills.
                weights.append(0.0 if image % IMAGES == 6 else 1.0)
                boxes = int(weights[-1]) * (image % 4)
                centres = random.uniform(0.2, 0.8, (boxes, 2))
                sides = random.uniform(0.1, 0.4, (boxes, 2))
                classes = random.integers(0, CLASSES, (boxes, 1))
                labels.append(np.hstack([classes, centres, sides]).astype(np.float32))
            count = len(self.slots)
            # Every other step is of another size.
            input_size = SIZE + 32 * (index // self.passes % 2)
            yield TrainBatch(
                epoch=0,
                index=index,
                samples=tuple(self.slots),
                images=torch.from_numpy(pixels),
                input_size=input_size,
                weights=torch.tensor(weights),
                flip=torch.zeros(count, dtype=torch.bool),
                colour_gains=torch.ones(count, 3),
                matches=(assign(labels, input_size, input_size, 0),),
                labels=tuple(labels),
                damaged={},
                skipped=0,
                wait_seconds=0.0,
            )

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
        weights = []
        upcoming = self.feed.next(Report(False, torch.zeros(3)))
        while upcoming.range is not None:
            step = upcoming.agree(torch.device("cpu"))
            upcoming = self.feed.next(Report(False, torch.zeros(3)))
            self.learner.train_step(step)
            named = self.model.named_parameters()
            weights.append({name: value.detach().clone() for name, value in named})
        return gradient, weights


@pytest.fixture
def start() -> DetectionModel:
    torch.manual_seed(3)
    model = build_model("yolov5n", CLASSES).double().eval()  # evaluation mode freezes batch norm
    model.image_size = SIZE
    model.model[-1].train()  # the head gives raw levels, as in training
    return model


def assert_close(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        error = (value - found[name]).norm() / value.norm().clamp_min(1e-30)
        assert error < 1e-9, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("passes", [1, 2])
def test_ranks_give_the_gradient_and_updates_of_one_process(comm, start, passes: int) -> None:
    whole = Rehearsal(SingleProcess(), start, images=IMAGES, passes=1)
    shares = Rehearsal(comm, start, images=IMAGES // passes, passes=passes)
    if len(shares.slots) == 0:
        pytest.skip("more ranks than images")
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert max(value.abs().max() for value in expected_gradient.values()) > 1e-3
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
    first, last = expected_weights[0], expected_weights[-1]
    assert any(not first[name].equal(last[name]) for name in first)


@pytest.mark.parametrize("passes", [1, 2])
def test_frozen_layers_take_no_part_and_parts_may_have_rates_of_their_own(comm, start, passes: int) -> None:
    freeze(start, "backbone, *.bn.weight")
    factors = read_lr_factors(start, "neck=0.5, head=3")
    frozen = {name for name, value in start.named_parameters() if not value.requires_grad}
    whole = Rehearsal(SingleProcess(), start, images=IMAGES, passes=1, factors=factors)
    shares = Rehearsal(comm, start, images=IMAGES // passes, passes=passes, factors=factors)
    if len(shares.slots) == 0:
        pytest.skip("more ranks than images")
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert gradient.keys() == {name for name, _ in start.named_parameters()} - frozen
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
    before = dict(start.named_parameters())
    for name, value in weights[-1].items():
        assert value.equal(before[name]) == (name in frozen), name
    comm.check_equal(dict(shares.model.named_parameters()))
