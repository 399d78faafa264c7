"""One optimizer step: the size the network sees, and the precision it works in."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from hvdyolo.config import LossConfig, OptimizerConfig
from hvdyolo.data.loader import TrainBatch
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine import learner as module
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Report, StepFeed
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.precision import Precision, gradient_scaler
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.engine.training_parts import build_assigner, count_cells
from hvdyolo.models.build import build_model


def build_learner(precision: Precision = "fp32", batches_a_step: int = 1) -> Learner:
    torch.manual_seed(0)
    model = build_model("yolov5n", 2)
    settings = OptimizerConfig(nominal_batch=2 * batches_a_step, warmup_epochs=0.0)
    optimizer = build_optimizer(model, replace(settings, weight_decay=0.0))
    return Learner(
        model=model,
        average=MovingAverage(model, 0.9, 10),
        optimizer=optimizer,
        reduction=SingleProcess().reduce_gradients(optimizer, model),
        schedule=TrainingSchedule(settings, epochs=1, batches=2 * batches_a_step, batch=2),
        loss=LossConfig(),
        clip_norm=10.0,
        device=torch.device("cpu"),
        beacon=Beacon(),
        precision=precision,
        # At torch's first scale the gradients of so few pixels are out of fp16's range.
        scaler=GradScaler("cpu", init_scale=2.0**6, enabled=precision == "fp16"),
    )


def batch(learner: Learner, index: int, input_size: int) -> TrainBatch[Any]:
    # Off the borders of cells, where one box would be matched up to five times.
    labels = [torch.tensor([[1, 0.48, 0.53, 0.4, 0.3]]).numpy()] * 2
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
    """Losses of each step of the batches."""
    batches = (batch(learner, index, size) for index, size in enumerate(sizes))
    feed = StepFeed(batches, learner.schedule.steps(0), SingleProcess(), count_cells(learner.model, 2))
    nothing = Report(False, torch.zeros(3))
    steps = len(sizes) // learner.schedule.accumulation
    return [learner.train_step(feed.next(nothing).agree(learner.device)) for _ in range(steps)]


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


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_rounds_the_network_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, dtype: torch.dtype
) -> None:
    types = []
    loss = module.detection_loss
    monkeypatch.setattr(
        module,
        "detection_loss",
        lambda levels, *rest: types.append({x.dtype for x in levels}) or loss(levels, *rest),
    )
    single, half = build_learner("fp32"), build_learner(precision)
    convolved: list[torch.dtype] = []
    half.model.model[3].register_forward_hook(lambda module, inputs, output: convolved.append(output.dtype))
    expected, found = take_steps(single, [64, 64]), take_steps(half, [64, 64])
    assert convolved == [dtype] * 2
    assert half.skipped == 0
    assert types == [{torch.float32}] * 4
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    # bf16 has 8 bits of precision, fp16 11: near, but not the same.
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0.03, atol=1e-3)
    assert not torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize(
    ("precision", "compression", "scale"),
    [("fp32", "none", 1.0), ("bf16", "fp16", 1.0), ("fp16", "none", 2.0**16), ("fp16", "fp16", 2.0**10)],
)
def test_only_fp16_scales_the_loss_and_less_if_gradients_are_sent_in_it(
    precision, compression, scale
) -> None:
    assert gradient_scaler(precision, torch.device("cpu"), compression).get_scale() == scale
