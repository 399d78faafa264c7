"""A step of another size: the network sees that size, the loss keeps the gains of the setting's."""

from typing import Any

import pytest
import torch

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


def test_the_network_sees_the_size_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model("yolov5n", 2)
    settings = OptimizerConfig(nominal_batch=2, warmup_epochs=0.0)
    schedule = TrainingSchedule(settings, epochs=1, batches=2, batch=2)
    optimizer = build_optimizer(model, 0.01, 0.9, 0.0)
    comm = SingleProcess()
    learner = Learner(
        model=model,
        average=MovingAverage(model, 0.9, 10),
        optimizer=optimizer,
        reduction=comm.reduce_gradients(optimizer, model),
        schedule=schedule,
        loss=LossConfig(),
        clip_norm=10.0,
        device=torch.device("cpu"),
        beacon=Beacon(),
    )
    labels = [torch.tensor([[1, 0.5, 0.5, 0.4, 0.3]]).numpy()] * 2
    assign = build_assigner(model, 4.0)

    def batch(index: int, input_size: int) -> TrainBatch[Any]:
        return TrainBatch(
            epoch=0,
            index=index,
            samples=(0, 1),
            images=torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8),
            input_size=input_size,
            weights=torch.ones(2),
            flip=None,
            colour_gains=None,
            matches=(assign(labels, input_size, input_size, 0),),
            labels=tuple(labels),
            damaged={},
            skipped=0,
            wait_seconds=0.0,
        )

    seen = []
    loss = module.detection_loss

    def watch(levels: Any, targets: Any, weights: Any, counts: Any, gains: Any, image_size: int) -> Any:
        seen.append(([level.shape[2] for level in levels], image_size))
        return loss(levels, targets, weights, counts, gains, image_size)

    monkeypatch.setattr(module, "detection_loss", watch)
    feed = StepFeed(iter([batch(0, 96), batch(1, 32)]), schedule.steps(0), comm, count_cells(model, 2))
    for _ in range(2):
        losses = learner.train_step(feed.next(Report(False, torch.zeros(3))).agree(torch.device("cpu")))
        assert torch.isfinite(losses).all()
    assert seen == [([12, 6, 3], 64), ([4, 2, 1], 64)]
