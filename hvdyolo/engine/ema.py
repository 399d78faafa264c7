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
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], share)
            else:
                average.copy_(current[name])
