"""The optimizer and its groups of parameters."""

from collections.abc import Mapping

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.lars import Lars
from hvdyolo.engine.schedule import StepRates

# Keys in each parameter group; unknown keys pass through torch's state untouched.
BIAS = "bias"
DECAYED = "decayed"
UNDECAYED = "undecayed"

_BETA_2 = 0.999


def build_optimizer(
    model: nn.Module, settings: OptimizerConfig, lr_factors: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimizer that ``settings`` name; only weight matrices (two or more dimensions) decay.

    Biases are a group of their own because their warm-up starts high. Anything else with one dimension
    (normalisation, learned fusion weights) is neither decayed nor warmed up like a bias. Frozen parameters
    are in no group, and so in no reduction over ranks.

    Args:
        model: whose parameters are learned.
        settings: as they hold for the batch (:mod:`hvdyolo.engine.large_batch`).
        lr_factors: by name of parameter, what its learning rate is multiplied by at all times; 1 for others.
    """
    factors = lr_factors or {}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for kind in (BIAS, DECAYED, UNDECAYED):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and _kind(name, parameter) == kind:
                groups.setdefault((kind, factors.get(name, 1.0)), []).append(parameter)
    lr, momentum = settings.lr, settings.momentum
    described = [
        {
            "name": kind,
            "lr_factor": factor,
            "params": parameters,
            "weight_decay": settings.weight_decay if kind == DECAYED else 0.0,
        }
        for (kind, factor), parameters in groups.items()
    ]
    if settings.name == "adamw":
        return AdamW(described, lr=lr, betas=(momentum, _BETA_2))
    if settings.name == "lars":
        for group in described:
            group["trust_coefficient"] = settings.trust_coefficient if group["name"] == DECAYED else None
        return Lars(described, lr=lr, momentum=momentum)
    return SGD(described, lr=lr, momentum=momentum, nesterov=True)


def apply_rates(optimizer: Optimizer, rates: StepRates) -> None:
    """Set every group to ``rates``, times its own factor; beta 1 is AdamW's momentum."""
    for group in optimizer.param_groups:
        group["lr"] = (rates.bias_lr if group["name"] == BIAS else rates.lr) * group["lr_factor"]
        if "betas" in group:
            group["betas"] = (rates.momentum, _BETA_2)
        else:
            group["momentum"] = rates.momentum


def _kind(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("bias"):
        return BIAS
    return DECAYED if parameter.ndim >= 2 else UNDECAYED
