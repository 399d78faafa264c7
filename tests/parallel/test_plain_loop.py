"""Twenty steps of this program on all ranks, against a training loop written out in plain torch.

Accumulation ramps up to two batches a step, and the last step of the run has one batch that is filled up.
"""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from rehearsal import EMA_DECAY, EMA_RAMP, Course, Drawing, Rehearsal, assert_close, narrow_model
from torch import Tensor, nn

from hvdyolo.config import OptimizerConfig
from hvdyolo.models.build import DetectionModel
from hvdyolo.objective.yolov5 import yolov5_loss

IMAGES, SAMPLES, BATCHES, EPOCHS, WARMUP = 4, 58, 15, 2, 17
# Warm-up goes from one batch to two, and is half-way between batches 8 and 9. Epochs end behind 14 and 29.
STEPS = [[n] for n in range(9)] + [[n, n + 1] for n in range(9, 29, 2)] + [[29]]
# Rates at which batch norm of few images does not blow up rounding: at 0.02, 1e-15 becomes 1e-6 in 20 steps.
LR, LAST, CLIP = 0.002, 0.1, 5.0
BIAS_START, MOMENTUM_START, MOMENTUM = 0.006, 0.8, 0.937


def plain_loop(start: DetectionModel) -> tuple[nn.Module, nn.Module, list[float]]:
    """The trained model, its moving average, and the norm of each step's gradient."""
    model = copy.deepcopy(start)
    average = copy.deepcopy(start)
    named = dict(model.named_parameters())
    biases = [value for name, value in named.items() if name.endswith("bias")]
    matrices = [value for name, value in named.items() if not name.endswith("bias") and value.ndim > 1]
    norms = [value for name, value in named.items() if not name.endswith("bias") and value.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": biases}, {"params": matrices, "weight_decay": 5e-4}, {"params": norms}],
        lr=LR,
        momentum=MOMENTUM,
        nesterov=True,
    )
    gradient_norms = []
    for number, batches in enumerate(STEPS):
        lr = LR * (1 - batches[-1] // BATCHES / EPOCHS * (1 - LAST))
        share = min(batches[-1] / WARMUP, 1)
        for group, from_lr in zip(optimizer.param_groups, (BIAS_START, 0.0, 0.0), strict=True):
            group["lr"] = from_lr + share * (lr - from_lr)
            group["momentum"] = MOMENTUM_START + share * (MOMENTUM - MOMENTUM_START)
        optimizer.zero_grad()
        loss_of_step(model, batches).backward()
        gradient_norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        decay = EMA_DECAY * (1 - math.exp(-(number + 1) / EMA_RAMP))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * new if kept.is_floating_point() else new)
    return model, average, gradient_norms


@dataclass(frozen=True)
class Answered:
    """In place of a network that has seen its images already, batch by batch."""

    strides: tuple[int, ...]
    anchors_pixels: Tensor
    levels: list[Tensor]

    def __call__(self, images: Tensor) -> list[Tensor]:
        return self.levels


def loss_of_step(model: DetectionModel, batches: list[int]) -> Tensor:
    """Of all images that count together. Batch norm sees a batch at a time, and what fills it as well."""
    answers, counted, rows = [], [], []
    for batch in batches:
        first = batch % BATCHES * IMAGES
        drawings = [
            Drawing.of(batch * IMAGES + slot, fills=first + slot >= SAMPLES) for slot in range(IMAGES)
        ]
        pixels = torch.stack([torch.from_numpy(drawing.pixels) for drawing in drawings])
        images = pixels.permute(0, 3, 1, 2).double() / 255
        count = min(SAMPLES - first, IMAGES)
        answers.append([level[:count] for level in model(images)])
        for image, drawing in enumerate(drawings[:count], sum(map(len, counted))):
            rows += [[image, *row] for row in drawing.labels.tolist()]
        counted.append(images[:count])
    levels = [torch.cat(parts) for parts in zip(*answers, strict=True)]
    answered = Answered(model.strides, model.anchors_pixels, levels)
    return yolov5_loss(answered, torch.cat(counted), torch.tensor(rows, dtype=torch.float32))["total"]


@pytest.fixture
def start(tmp_path) -> DetectionModel:
    return narrow_model(tmp_path).double()


def test_twenty_steps_are_those_of_a_plain_loop(comm, start) -> None:
    if comm.world.size > 2:
        pytest.skip("3420 sums one after the other; test_parity compares more ranks over three steps")
    settings = OptimizerConfig(
        lr=LR, lr_final=LAST, clip_norm=CLIP, momentum=MOMENTUM,
        warmup_epochs=WARMUP / BATCHES, warmup_min_batches=0, warmup_bias_lr=BIAS_START,
        warmup_momentum=MOMENTUM_START,
    )  # fmt: skip
    course = Course(
        IMAGES, samples=SAMPLES, epochs=EPOCHS, sizes=(64,), optimizer=settings, nominal_batch=2 * IMAGES
    )
    ours = Rehearsal(comm, start, course, synchronised=True)
    steps = sum(1 for _ in ours.steps())
    model, average, gradient_norms = plain_loop(start)
    assert steps == len(gradient_norms) == 20
    # Some gradients are clipped and some are not, or clipping would not be compared.
    assert min(gradient_norms) < CLIP < max(gradient_norms), gradient_norms
    assert_close(model.state_dict(), ours.model.state_dict())
    assert_close(average.state_dict(), ours.learner.average.model.state_dict())
