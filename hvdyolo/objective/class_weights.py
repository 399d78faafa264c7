"""How much each class counts in the class term."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.utils.errors import UsageError

# Weights are the numbers of boxes to the power of minus this.
_RULES = {"inverse": 1.0, "inverse_sqrt": 0.5}


def class_weights(setting: str | None, counts: NDArray[np.int64]) -> Tensor | None:
    """(C,) weights of mean 1, or ``None`` where all classes count alike.

    A rule's mean is over the classes that have boxes. A class without any has the weight 1: it would have
    the largest of all, and leave nothing to the others.

    Args:
        setting: ``loss.class_weights``.
        counts: (C,) boxes of each class in the training split.

    Raises:
        UsageError: it is neither a rule nor a number above 0 a class.
    """
    if setting is None:
        return None
    if setting in _RULES:
        weights = np.ones(len(counts))
        there = counts > 0
        if there.any():
            powers = counts[there] ** -_RULES[setting]
            weights[there] = powers / powers.mean()
    else:
        weights = np.array(_read_numbers(setting, len(counts)))
        weights /= weights.mean()
    return torch.from_numpy(weights).float()


def _read_numbers(setting: str, classes: int) -> list[float]:
    try:
        numbers = [float(word) for word in setting.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != classes or not all(0 < number < math.inf for number in numbers):
        raise UsageError(
            f"'{setting}' is neither {' nor '.join(_RULES)} nor {classes} numbers above 0, one a class, with "
            "commas between them."
        )
    return numbers
