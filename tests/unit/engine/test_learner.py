"""One optimizer step: the size the network sees, and the precision it works in."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from hvdyolo.config import LossConfig, OptimizerConfig
from hvdyolo.data.loader import TrainBatch
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine import learner as module
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Report, StepFeed
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.engine.training import build_assigner, count_cells
from hvdyolo.models.build import build_model


def build_learner(precision: Literal["fp32", "bf16"] = "fp32") -> Learner:
    torch.manual_seed(0)
    model = build_model("yolov5n", 2)
    settings = OptimizerConfig(nominal_batch=2, warmup_epochs=0.0)
    optimizer = build_optimizer(model, replace(settings, weight_decay=0.0))
    return Learner(
        model=model,
        average=MovingAverage(model, 0.9, 10),
        optimizer=optimizer,
        reduction=SingleProcess().reduce_gradients(optimizer, model),
        schedule=TrainingSchedule(settings, epochs=1, batches=2, batch=2),
        loss=LossConfig(),
        clip_norm=10.0,
        device=torch.device("cpu"),
        beacon=Beacon(),
        precision=precision,
    )


def batch(learner: Learner, index: int, input_size: int) -> TrainBatch[Any]:
    labels = [torch.tensor([[1, 0.5, 0.5, 0.4, 0.3]]).numpy()] * 2
    generator = torch.Generator().manual_seed(index)
    return TrainBatch(
        epoch=0,
        index=index,
        samples=(0, 1),
        images=torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator),
        input_size=input_size,
        weights=torch.ones(2),
        flip=None,
        colour_gains=None,
        matches=(build_assigner(learner.model, 4.0)(labels, input_size, input_size, 0),),
        labels=tuple(labels),
        damaged={},
        skipped=0,
        wait_seconds=0.0,
    )


def take_steps(learner: Learner, sizes: Sequence[int]) -> list[Tensor]:
    """Losses of a step a batch."""
    batches = (batch(learner, index, size) for index, size in enumerate(sizes))
    feed = StepFeed(batches, learner.schedule.steps(0), SingleProcess(), count_cells(learner.model, 2))
    cpu = torch.device("cpu")
    return [learner.train_step(feed.next(Report(False, torch.zeros(3))).agree(cpu)) for _ in sizes]


def test_the_network_sees_the_size_of_the_step_and_the_loss_the_weights_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    weighted: list[Tensor] = []
    loss = module.detection_loss

    def watch(
        levels: Any, targets: Any, weights: Any, counts: Any, gains: Any, image_size: int, *more: Any
    ) -> Any:
        seen.append(([level.shape[2] for level in levels], image_size))
        weighted.extend(more)
        return loss(levels, targets, weights, counts, gains, image_size, *more)

    monkeypatch.setattr(module, "detection_loss", watch)
    learner = build_learner()
    learner.class_weights = torch.tensor([0.5, 1.5])
    assert all(torch.isfinite(losses).all() for losses in take_steps(learner, [96, 32]))
    # Gains are those of the setting's size, or they would change with the step's.
    assert seen == [([12, 6, 3], 64), ([4, 2, 1], 64)]
    assert [weights is learner.class_weights for weights in weighted] == [True, True]


def test_bf16_rounds_the_network_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    types = []
    loss = module.detection_loss
    monkeypatch.setattr(
        module,
        "detection_loss",
        lambda levels, *rest: types.append({x.dtype for x in levels}) or loss(levels, *rest),
    )
    single, half = build_learner("fp32"), build_learner("bf16")
    convolved: list[torch.dtype] = []
    half.model.model[3].register_forward_hook(lambda module, inputs, output: convolved.append(output.dtype))
    expected, found = take_steps(single, [64, 64]), take_steps(half, [64, 64])
    assert convolved == [torch.bfloat16] * 2
    assert types == [{torch.float32}] * 4
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    # bf16 has 8 bits of precision: near, but not the same.
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0.03, atol=1e-3)
    assert not torch.equal(torch.stack(found), torch.stack(expected))
