"""The optimizer and its three groups of parameters."""

from torch import nn
from torch.optim import SGD

from hvdyolo.engine.schedule import StepRates

# Keys in each parameter group; unknown keys pass through torch's state untouched.
BIAS = "bias"
DECAYED = "decayed"
UNDECAYED = "undecayed"


def build_optimizer(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> SGD:
    """Nesterov SGD; only weight matrices (two or more dimensions) decay.

    Biases are a group of their own because their warm-up starts high. Anything else with one dimension
    (normalisation, learned fusion weights) is neither decayed nor warmed up like a bias.
    """
    groups: dict[str, list[nn.Parameter]] = {BIAS: [], DECAYED: [], UNDECAYED: []}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            groups[BIAS].append(parameter)
        elif parameter.ndim >= 2:
            groups[DECAYED].append(parameter)
        else:
            groups[UNDECAYED].append(parameter)
    return SGD(
        [
            {
                "name": name,
                "params": parameters,
                "weight_decay": weight_decay if name == DECAYED else 0.0,
            }
            for name, parameters in groups.items()
            if parameters
        ],
        lr=lr,
        momentum=momentum,
        nesterov=True,
    )


def apply_rates(optimizer: SGD, rates: StepRates) -> None:
    """Set every group to ``rates``."""
    for group in optimizer.param_groups:
        group["lr"] = rates.bias_lr if group["name"] == BIAS else rates.lr
        group["momentum"] = rates.momentum
