"""LARS: momentum SGD whose steps are a share of each weight matrix's own norm."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888, algorithm 1).

    With gradient g, weights w, velocity v and decay b, each tensor takes the step::

        ratio = trust_coefficient * |w| / (|g| + b * |w|)
        v = momentum * v + lr * ratio * (g + b * w)
        w = w - v

    The ratio is 1, and the step that of plain momentum, for tensors that are 0 or whose gradient is, and in
    groups whose ``trust_coefficient`` is ``None``, as is usual for biases and normalisation.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = 0.1,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply the gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weights in group["params"]:
                gradient, decay, trust = weights.grad, group["weight_decay"], group["trust_coefficient"]
                if gradient is None:
                    continue
                change = gradient.add(weights, alpha=decay)
                if trust is not None:
                    change *= _ratio(weights, gradient, decay, trust)
                state = self.state[weights]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weights)
                # The rate is inside, as in the paper: velocity that is there keeps the rate it was made with.
                velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(change, alpha=group["lr"])
                weights.sub_(velocity)
        return loss


def _ratio(weights: Tensor, gradient: Tensor, decay: float, trust_coefficient: float) -> Tensor:
    """(), and a tensor: asking for its value would wait for the device."""
    size, slope = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(gradient)
    return torch.where((size > 0) & (slope > 0), trust_coefficient * size / (slope + decay * size), 1.0)
