"""The large-batch rule against numbers computed by hand, and what it has to keep."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.large_batch import settings_for_batch
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.schedule import TrainingSchedule

EPOCHS = 300

# lr, decay, trust coefficient, clip norm, warm-up epochs, first rate of biases, and the average's decay and
# ramp. 0.9999 to the powers of 4, 16 and 64 is 0.99960006, 0.99840120 and 0.99362011.
TABLE: dict[str, dict[int, tuple[float, ...]]] = {
    "sgd": {
        16: (0.01, 0.0005, 0.1, 10, 3, 0.1, 0.9999, 2000),
        64: (0.01, 0.0005, 0.1, 10, 3, 0.1, 0.9999, 2000),
        256: (0.01, 0.002, 0.2, 40, 6, 0.025, 0.99960006, 500),
        1024: (0.01, 0.008, 0.4, 160, 12, 0.00625, 0.99840120, 125),
        4096: (0.01, 0.032, 0.8, 640, 24, 0.0015625, 0.99362011, 31.25),
    },
    "adamw": {
        16: (0.001, 0.05, 0.1, 10, 3, 0, 0.9999, 2000),
        64: (0.001, 0.05, 0.1, 10, 3, 0, 0.9999, 2000),
        256: (0.002, 0.1, 0.2, 40, 6, 0, 0.99960006, 500),
        1024: (0.004, 0.2, 0.4, 160, 12, 0, 0.99840120, 125),
        4096: (0.008, 0.4, 0.8, 640, 24, 0, 0.99362011, 31.25),
    },
}
TABLE["lars"] = TABLE["sgd"]
ADVISED: dict[str, dict[str, float]] = {"sgd": {}, "adamw": {"lr": 0.001, "weight_decay": 0.05}, "lars": {}}


def resolved(batch: int, epochs: int = EPOCHS, **settings: Any) -> OptimizerConfig:
    return TrainingSchedule(OptimizerConfig(**settings), epochs, 100, batch).resolved


@pytest.mark.parametrize("batch", [16, 64, 256, 1024, 4096])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_every_setting_at_every_batch(name: str, batch: int) -> None:
    found = resolved(batch, name=name, **ADVISED[name])
    assert (
        found.lr,
        found.weight_decay,
        found.trust_coefficient,
        found.clip_norm,
        found.warmup_epochs,
        found.warmup_bias_lr,
        found.ema_decay,
        found.ema_ramp,
    ) == pytest.approx(TABLE[name][batch], rel=1e-7)
    untouched = ("momentum", "warmup_momentum", "lr_final", "warmup_min_batches", "nominal_batch")
    assert all(getattr(found, key) == getattr(OptimizerConfig(), key) for key in untouched)


@pytest.mark.parametrize("batch", [1, 10, 16, 24, 40, 48, 63, 64])
def test_up_to_a_nominal_batch_only_the_decay_follows_the_images_of_a_step(batch: int) -> None:
    settings = OptimizerConfig(
        lr=0.013, weight_decay=7e-4, clip_norm=9.1, ema_decay=0.9997, warmup_epochs=1.7
    )
    schedule = TrainingSchedule(settings, EPOCHS, 100, batch)
    images = batch * schedule.accumulation
    # To the bit: runs that were begun without the rule go on as they were.
    assert schedule.resolved == replace(settings, weight_decay=7e-4 * images / 64)


def test_warmup_takes_no_more_than_a_fifth_of_a_run_unless_it_is_set_to() -> None:
    assert resolved(4096, epochs=60).warmup_epochs == 12
    assert resolved(4096, epochs=300).warmup_epochs == 24
    assert resolved(4096, epochs=10).warmup_epochs == 3
    assert resolved(4096, warmup_epochs=0.0).warmup_epochs == 0


def test_a_batch_that_is_nominal_has_the_settings_as_they_are() -> None:
    settings = OptimizerConfig(nominal_batch=1024, name="lars", lr=0.02)
    assert settings_for_batch(settings, 1024, 1, EPOCHS) == settings


def step(name: str, batch: int, decay: float, slope: float) -> Tensor:
    """Change of the weights (3, 4) by a step whose images have mean gradients across them, ``slope`` long."""
    model = nn.Linear(2, 1, bias=False).double()
    start = torch.tensor([[3.0, 4.0]]).double()
    with torch.no_grad():
        model.weight.copy_(start)
    model.weight.grad = slope * torch.tensor([[0.8, -0.6]]).double() * batch  # the loss sums over images
    build_optimizer(model, resolved(batch, name=name, weight_decay=decay)).step()
    return (model.weight.detach() - start).flatten()


@pytest.mark.parametrize(("name", "factor"), [("sgd", 16), ("adamw", 4), ("lars", 4)])
def test_a_step_of_sixteen_times_the_images_moves_weights_further(name: str, factor: float) -> None:
    small, large = (step(name, batch, 0.0, 0.005) for batch in (64, 1024))
    assert small.norm() > 1e-6
    assert large.tolist() == pytest.approx((factor * small).tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_takes_as_much_an_epoch(name: str) -> None:
    """Which has a sixteenth of the steps."""
    small, large = (step(name, batch, 0.01, 0.0) for batch in (64, 1024))
    assert small.norm() > 1e-6
    assert large.tolist() == pytest.approx((16 * small).tolist(), rel=1e-9)


def test_decay_has_the_same_share_of_a_step_of_lars() -> None:
    small, large = (step("lars", batch, 0.01, 0.005) for batch in (64, 1024))
    along = torch.tensor([0.6, 0.8]).double()
    assert (small @ along).abs() > 1e-6
    assert large.tolist() == pytest.approx((4 * small).tolist(), rel=1e-9)
