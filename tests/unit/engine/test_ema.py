"""The moving average against the recurrence worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from hvdyolo.engine.ema import MovingAverage


def filled(value: float) -> Any:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def test_decay_approaches_its_limit() -> None:
    average = MovingAverage(filled(0), decay=0.9999, ramp=2000)
    assert average.decay() == pytest.approx(0.9999 * (1 - math.exp(-1 / 2000)))
    average.updates = 1999
    assert average.decay() == pytest.approx(0.9999 * (1 - math.exp(-1)))


def test_update_mixes_weights_and_buffers() -> None:
    # ramp chosen so that the first decay is 0.5 * (1 - e^-1).
    average = MovingAverage(filled(2.0), decay=0.5, ramp=1.0)
    average.update(filled(4.0))
    decay = 0.5 * (1 - math.exp(-1))
    expected = decay * 2 + (1 - decay) * 4
    state = average.model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        assert state[name].flatten()[0].item() == pytest.approx(expected), name
    assert state["1.num_batches_tracked"] == 4  # counts are copied, not averaged
    assert average.updates == 1


def test_later_updates_see_what_the_model_has_become_and_another_model_too() -> None:
    average = MovingAverage(filled(0.0), decay=0.5, ramp=1.0)
    model, expected = filled(1.0), 0.0

    def update(model: Any, value: float) -> float:
        decay = average.decay()
        average.update(model)
        return decay * expected + (1 - decay) * value

    expected = update(model, 1.0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(3.0)  # in place, as optimizers and batch norm do
    expected = update(model, 3.0)
    expected = update(filled(9.0), 9.0)
    assert average.model[0].weight.item() == pytest.approx(expected)
    assert average.model[1].running_var.item() == pytest.approx(expected)
    assert average.model[1].num_batches_tracked == 9


def test_the_model_itself_is_untouched_and_the_average_needs_no_gradient() -> None:
    model = filled(1.0)
    average = MovingAverage(model, decay=0.5, ramp=1.0)
    average.update(filled(3.0))
    assert model[0].weight.item() == 1.0
    assert model[0].weight.requires_grad
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not average.model.training
