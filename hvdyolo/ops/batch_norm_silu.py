"""Training's batch norm and SiLU in one, on CPUs: native/batch_norm_silu.c, where setup.py could compile it.

Torch's two are a quarter of a training step of YOLOv5; in one they take half the time, and one activation is
kept for the backward pass instead of two.
"""

import ctypes
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hvdyolo.ops.compiled import as_saved, compiled, holds_its_values

_IS_BFLOAT16 = {torch.float32: False, torch.bfloat16: True}


@cache
def compiled_functions() -> ctypes.CDLL | None:
    """Those for this processor, which return whether there was no memory; nothing where there are none."""
    found = compiled("batch_norm_silu")
    if found is None:
        return None
    address, count, real, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_int
    library = found.library
    library.batch_norm_silu_forward.argtypes = (*[address] * 7, count, count, real, real, number, number)
    library.batch_norm_silu_backward.argtypes = (
        address, address, count, *[address] * 4, count, count, number, number
    )  # fmt: skip
    return library


def can_fuse(norm: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Whether ``batch_norm_silu`` does what ``norm``, as it stands, and SiLU do with ``x``."""
    return (
        type(norm) is nn.BatchNorm2d  # one that is made from it may compute something else
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and x.device.type == "cpu"
        and holds_its_values(x)  # torch's compiler makes one of the two by itself
        and x.dtype in _IS_BFLOAT16
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1]  # torch refuses a single value a channel, and says why
        and all(
            _has_one_each(numbers, x.shape[1])
            for numbers in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        and compiled_functions() is not None
    )


def _has_one_each(numbers: Tensor | None, channels: int) -> bool:
    """Whether these are what C takes them for: a float for each channel."""
    return (
        numbers is not None
        and numbers.shape == (channels,)
        and numbers.dtype == torch.float32
        and numbers.is_contiguous()
    )


def batch_norm_silu(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """``silu(norm(x))`` of (B, C, H, W), with the running statistics moved. Only where they ``can_fuse``.

    Equal to torch's within rounding. The number of threads changes no bit.
    """
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return _BatchNormSilu.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
    )


class _BatchNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        channels = x.shape[1]
        y, statistics = torch.empty_like(x), weight.new_empty(4, channels)
        _call(
            "batch_norm_silu_forward",
            *map(Tensor.data_ptr, (x, y, weight, bias, running_mean, running_variance, statistics)),
            *(x.numel() // channels, channels, momentum, eps, _IS_BFLOAT16[x.dtype]),
        )
        context.save_for_backward(x, statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, y_gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics = context.saved_tensors
        x = as_saved(x, y_gradient.dtype)
        channels = x.shape[1]
        stride = _place_stride(y_gradient)
        if stride is None:
            y_gradient, stride = y_gradient.contiguous(memory_format=torch.channels_last), channels
        x_gradient = torch.empty_like(x)
        weight_gradient, bias_gradient = statistics.new_empty(channels), statistics.new_empty(channels)
        _call(
            "batch_norm_silu_backward",
            *(x.data_ptr(), y_gradient.data_ptr(), stride),
            *map(Tensor.data_ptr, (x_gradient, weight_gradient, bias_gradient, statistics)),
            *(x.numel() // channels, channels, _IS_BFLOAT16[x.dtype]),
        )
        return x_gradient, weight_gradient, bias_gradient, None, None, None, None


def _call(name: str, *arguments: float) -> None:
    if getattr(compiled_functions(), name)(*arguments, torch.get_num_threads()):
        raise MemoryError("There is no memory for the sums of a batch norm.")


def _place_stride(tensor: Tensor) -> int | None:
    """Values from one place of (B, C, H, W) to the next, if channels lie together and places in order.

    They do in some channels of a larger tensor too, as the gradient of one part of a concatenation is.
    """
    _, channels, height, width = tensor.shape
    of_image, of_channel, of_row, of_place = tensor.stride()
    in_order = of_channel == 1 and of_row == width * of_place and of_image == height * of_row
    return of_place if in_order and of_place >= channels else None
