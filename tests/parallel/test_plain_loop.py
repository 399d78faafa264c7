"""Twenty steps of this program on all ranks, against a training loop written out in plain torch."""

import copy
import math

import pytest
import torch
from rehearsal import EMA_DECAY, EMA_RAMP, Course, Drawing, Rehearsal, assert_close, narrow_model
from torch import Tensor, nn

from hvdyolo.config import OptimizerConfig
from hvdyolo.models.build import DetectionModel
from hvdyolo.objective.yolov5 import yolov5_loss

IMAGES, STEPS, EPOCHS, WARMUP = 6, 10, 2, 8
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
    for number in range(EPOCHS * STEPS):
        lr = LR * (1 - number // STEPS / EPOCHS * (1 - LAST))
        share = min(number / WARMUP, 1)
        for group, from_lr in zip(optimizer.param_groups, (BIAS_START, 0.0, 0.0), strict=True):
            group["lr"] = from_lr + share * (lr - from_lr)
            group["momentum"] = MOMENTUM_START + share * (MOMENTUM - MOMENTUM_START)
        optimizer.zero_grad()
        yolov5_loss(model, *images_and_targets(number))["total"].backward()
        gradient_norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        decay = EMA_DECAY * (1 - math.exp(-(number + 1) / EMA_RAMP))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * new if kept.is_floating_point() else new)
    return model, average, gradient_norms


def images_and_targets(batch: int) -> tuple[Tensor, Tensor]:
    drawings = [Drawing.of(batch * IMAGES + slot, with_fillers=False) for slot in range(IMAGES)]
    pixels = torch.stack([torch.from_numpy(drawing.pixels) for drawing in drawings])
    rows = [[slot, *row] for slot, drawing in enumerate(drawings) for row in drawing.labels.tolist()]
    return pixels.permute(0, 3, 1, 2).double() / 255, torch.tensor(rows, dtype=torch.float32)


@pytest.fixture
def start(tmp_path) -> DetectionModel:
    return narrow_model(tmp_path).double()


def test_twenty_steps_are_those_of_a_plain_loop(comm, start) -> None:
    if comm.world.size > 2:
        pytest.skip("2280 sums one after the other; test_parity compares more ranks over three steps")
    settings = OptimizerConfig(
        lr=LR, lr_final=LAST, clip_norm=CLIP, momentum=MOMENTUM,
        warmup_epochs=WARMUP / STEPS, warmup_min_batches=0, warmup_bias_lr=BIAS_START,
        warmup_momentum=MOMENTUM_START,
    )  # fmt: skip
    course = Course(IMAGES, steps=STEPS, epochs=EPOCHS, sizes=(64,), with_fillers=False, optimizer=settings)
    ours = Rehearsal(comm, start, course, synchronised=True)
    steps = sum(1 for _ in ours.steps())
    model, average, gradient_norms = plain_loop(start)
    assert steps == len(gradient_norms) == 20
    # Some gradients are clipped and some are not, or clipping would not be compared.
    assert min(gradient_norms) < CLIP < max(gradient_norms), gradient_norms
    assert_close(model.state_dict(), ours.model.state_dict())
    assert_close(average.state_dict(), ours.learner.average.model.state_dict())
