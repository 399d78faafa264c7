"""Which parameters decay, and which learning rate each group gets."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.lars import Lars
from hvdyolo.engine.optimizer import apply_rates, build_optimizer
from hvdyolo.engine.schedule import StepRates


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.fusion = nn.Parameter(torch.ones(3))


def test_only_weight_matrices_decay_and_only_biases_have_their_own_rate() -> None:
    model = Fusion()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=5e-4))
    apply_rates(optimizer, StepRates(lr=0.02, bias_lr=0.07, momentum=0.85))
    settings = {}
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.85
        assert group["nesterov"]
        for parameter in group["params"]:
            settings[parameter] = (group["weight_decay"], group["lr"])
    assert settings == {
        model.conv.weight: (5e-4, 0.02),
        model.conv.bias: (0.0, 0.07),
        model.bn.weight: (0.0, 0.02),
        model.bn.bias: (0.0, 0.07),
        model.fusion: (0.0, 0.02),
    }


def test_parts_may_learn_at_a_multiple_of_the_rate() -> None:
    model = Fusion()
    optimizer = build_optimizer(
        model, OptimizerConfig(), {"conv.weight": 0.1, "conv.bias": 0.1, "bn.bias": 2.0, "fusion": 0.5}
    )
    apply_rates(optimizer, StepRates(lr=0.02, bias_lr=0.07, momentum=0.85))
    rates = {
        parameter: (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        model.conv.weight: (5e-4, 0.002),
        model.conv.bias: (0.0, 0.007),
        model.bn.weight: (0.0, 0.02),
        model.bn.bias: (0.0, 0.14),
        model.fusion: (0.0, 0.01),
    }
    assert {key: pytest.approx(value) for key, value in expected.items()} == rates


def test_what_is_frozen_is_in_no_group() -> None:
    model = Fusion()
    model.conv.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    grouped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert grouped == {model.bn.weight, model.bn.bias, model.fusion}


def test_each_name_is_the_optimizer_of_that_name() -> None:
    built = {name: build_optimizer(Fusion(), OptimizerConfig(name=name)) for name in ("sgd", "adamw", "lars")}
    assert {name: type(optimizer) for name, optimizer in built.items()} == {
        "sgd": SGD,
        "adamw": AdamW,
        "lars": Lars,
    }


def test_adamw_decays_matrices_by_themselves_and_its_beta_1_is_the_momentum() -> None:
    model = Fusion()
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", weight_decay=0.5))
    apply_rates(optimizer, StepRates(lr=0.02, bias_lr=0.01, momentum=0.85))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.85, 0.999)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
            parameter.grad = torch.full_like(parameter, 7.0)
    optimizer.step()
    # The first step is the rate, however long the gradient. Before it matrices shrink by 0.02 * 0.5.
    expected = {"conv.weight": 2 * 0.99 - 0.02, "bn.weight": 1.98, "fusion": 1.98, "conv.bias": 1.99}
    for name, value in expected.items():
        assert model.get_parameter(name).unique().tolist() == [pytest.approx(value, rel=1e-6)], name


def test_lars_adapts_matrices_only() -> None:
    optimizer = build_optimizer(Fusion(), OptimizerConfig(name="lars", trust_coefficient=0.2))
    assert {group["name"]: group["trust_coefficient"] for group in optimizer.param_groups} == {
        "bias": None,
        "decayed": 0.2,
        "undecayed": None,
    }
