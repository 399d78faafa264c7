"""Half precision for the network, and the scaling of the loss that keeps fp16's small range."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.amp.grad_scaler import GradScaler

Precision = Literal["fp32", "bf16", "fp16"]

_HALF: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_SCALE = 2.0**16  # torch's own
_FIRST_SCALE_OF_COMPRESSED_GRADIENTS = 2.0**10


def reduced_precision(
    precision: Precision, device: torch.device, *, keep_casts: bool = True
) -> AbstractContextManager[object]:
    """Where convolutions and matrix products compute in ``precision``.

    Args:
        keep_casts: weights that were cast once are not cast again.
    """
    return torch.autocast(
        device.type, _HALF.get(precision), enabled=precision in _HALF, cache_enabled=keep_casts
    )


def gradient_scaler(
    precision: Precision, device: torch.device, compression: Literal["none", "fp16"]
) -> GradScaler:
    """What multiplies the loss before backward passes; by 1, always, unless ``precision`` is fp16.

    It halves its scale after a step with gradients out of range, and doubles it after 2000 without. Where
    gradients are also sent in half precision, they themselves have to stay below 65504 times the scale, so
    it starts lower than for what flows between layers alone.
    """
    first = _FIRST_SCALE if compression == "none" else _FIRST_SCALE_OF_COMPRESSED_GRADIENTS
    return GradScaler(device.type, init_scale=first, enabled=precision == "fp16")


def no_scaling() -> GradScaler:
    """A scaler that leaves everything as it is."""
    return GradScaler("cpu", enabled=False)
