"""An exponential moving average of the weights: what is evaluated, saved and used for detection."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvdyolo.models.build import DetectionModel
from hvdyolo.ops.tensor_lists import copy_tensors


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
        self._pairs: _Pairs | None = None

    def decay(self) -> float:
        """Decay of the next update: small at first, when the weights still change fast."""
        return self._decay * (1 - math.exp(-(self.updates + 1) / self._ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model`` by one step."""
        share = 1 - self.decay()
        self.updates += 1
        if self._pairs is None or self._pairs.model is not model:
            self._pairs = _Pairs.of(self.model, model)
        torch._foreach_lerp_(self._pairs.averages, self._pairs.current, share)
        copy_tensors(self._pairs.counts, self._pairs.current_counts)


@dataclass(frozen=True)
class _Pairs:
    """Tensors of an average and of ``model``: looking them up takes 2 ms of a step.

    They stay the same objects. After ``model.to(…)`` or the like they would be those of before.

    Attributes:
        averages: of floating point, with those of the model in ``current``.
        counts: whole numbers, likewise.
    """

    model: nn.Module
    averages: list[Tensor]
    current: list[Tensor]
    counts: list[Tensor]
    current_counts: list[Tensor]

    @classmethod
    def of(cls, average: nn.Module, model: nn.Module) -> "_Pairs":
        averages, current = average.state_dict(), model.state_dict()
        moving = [name for name, value in averages.items() if value.is_floating_point()]
        whole = [name for name, value in averages.items() if not value.is_floating_point()]
        return cls(
            model,
            [averages[name] for name in moving],
            [current[name] for name in moving],
            [averages[name] for name in whole],
            [current[name] for name in whole],
        )
