"""An exponential moving average of the weights: what is evaluated, saved and used for detection."""

import copy
import math

import torch
from torch import nn

from hvdyolo.models.build import DetectionModel


class MovingAverage:
    """The average of a model's weights and buffers over optimizer steps.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
        updates: optimizer steps seen; the decay depends on it.
    """

    def __init__(self, model: DetectionModel, decay: float, ramp: float, updates: int = 0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = updates
        self._decay = decay
        self._ramp = ramp

    def decay(self) -> float:
        """Decay of the next update: small at first, when the weights still change fast."""
        return self._decay * (1 - math.exp(-(self.updates + 1) / self._ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model`` by one step."""
        share = 1 - self.decay()
        self.updates += 1
        averages, current = self.model.state_dict(), model.state_dict()
        moving = [name for name, average in averages.items() if average.is_floating_point()]
        # Hundreds of tensors in one call: one by one, a GPU would be asked for each.
        torch._foreach_lerp_([averages[name] for name in moving], [current[name] for name in moving], share)
        for name in averages.keys() - moving:
            averages[name].copy_(current[name])
