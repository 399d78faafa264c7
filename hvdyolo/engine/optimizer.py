"""The optimizer and its groups of parameters."""

from collections.abc import Mapping

from torch import nn
from torch.optim import SGD

from hvdyolo.engine.schedule import StepRates

# Keys in each parameter group; unknown keys pass through torch's state untouched.
BIAS = "bias"
DECAYED = "decayed"
UNDECAYED = "undecayed"


def build_optimizer(
    model: nn.Module,
    lr: float,
    momentum: float,
    weight_decay: float,
    lr_factors: Mapping[str, float] | None = None,
) -> SGD:
    """Nesterov SGD; only weight matrices (two or more dimensions) decay.

    Biases are a group of their own because their warm-up starts high. Anything else with one dimension
    (normalisation, learned fusion weights) is neither decayed nor warmed up like a bias. Frozen parameters
    are in no group, and so in no reduction over ranks.

    Args:
        model: whose parameters are learned.
        lr: learning rate.
        momentum: Nesterov momentum.
        weight_decay: of the weight matrices.
        lr_factors: by name of parameter, what its learning rate is multiplied by at all times; 1 for others.
    """
    factors = lr_factors or {}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for kind in (BIAS, DECAYED, UNDECAYED):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and _kind(name, parameter) == kind:
                groups.setdefault((kind, factors.get(name, 1.0)), []).append(parameter)
    return SGD(
        [
            {
                "name": kind,
                "lr_factor": factor,
                "base_lr": lr,
                "params": parameters,
                "weight_decay": weight_decay if kind == DECAYED else 0.0,
            }
            for (kind, factor), parameters in groups.items()
        ],
        lr=lr,
        momentum=momentum,
        nesterov=True,
    )


def apply_rates(optimizer: SGD, rates: StepRates) -> None:
    """Set every group to ``rates``, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = (rates.bias_lr if group["name"] == BIAS else rates.lr) * group["lr_factor"]
        group["base_lr"] = rates.lr
        group["momentum"] = rates.momentum


def base_lr(optimizer: SGD) -> float:
    """The learning rate of the schedule, of which groups may have a multiple."""
    return float(optimizer.param_groups[0]["base_lr"])


def _kind(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("bias"):
        return BIAS
    return DECAYED if parameter.ndim >= 2 else UNDECAYED
