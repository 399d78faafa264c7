"""Convolutions whose weights' gradient native/weight_gradient.c computes where torch has a slow one.

That is on processors with AVX2 and without AVX-512, for activations whose channels are last: oneDNN's takes
1.5 to 2 times as long there as the gradient of the input, for as many operations. All else is left to torch.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from hvdyolo.ops.compiled import as_saved, compiled, holds_its_values

_LANES, _OUTPUTS = 8, 4
"""Of the C file: channels and outputs must be multiples of them."""
_LEAST_TILES = 2
"""Of outputs for each thread, for these are what threads share out."""


class Convolution(nn.Conv2d):
    """A convolution that is torch's, but for how its weights' gradient may be computed in training.

    There it has no second derivatives.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight  # once: of a parametrized layer, each look computes it
        if can_compute_gradient(self, weight, x):
            return _Convolution.apply(x, weight, self.stride[0])  # type: ignore[no-any-return, no-untyped-call]
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y


@cache
def compiled_function() -> Any:
    """The C function, which returns whether there was no memory; nothing where torch's is to be used."""
    found = compiled("weight_gradient") if torch.backends.cpu.get_cpu_capability() == "AVX2" else None
    if found is None:
        return None
    function = found.library.weight_gradient
    function.argtypes = (*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 8, ctypes.c_int)
    return function


def can_compute_gradient(convolution: nn.Conv2d, weight: Tensor, x: Tensor) -> bool:
    """Whether the C function computes the gradient, if ``convolution`` applies ``weight`` to ``x``."""
    return (
        convolution.training
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and holds_its_values(x)  # before the number of threads, at which torch's compiler cannot look
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and weight.shape[0] % _OUTPUTS == 0
        and weight.shape[0] >= _OUTPUTS * _LEAST_TILES * torch.get_num_threads()
        and x.shape[1] % _LANES == 0
        and convolution.padding == (1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.stride[0] == convolution.stride[1]
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is None
        and not torch.is_autocast_enabled("cpu")
        and compiled_function() is not None
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        context.save_for_backward(x, weight)
        context.stride = stride
        return conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(context: Any, y_gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = context.saved_tensors
        x = as_saved(x, y_gradient.dtype)
        y_gradient = y_gradient.contiguous(memory_format=torch.channels_last)
        x_gradient = None
        if context.needs_input_grad[0]:
            x_gradient, _, _ = torch.ops.aten.convolution_backward(
                y_gradient, x, weight, None, [context.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1,
                [True, False, False],
            )  # fmt: skip
        return x_gradient, weight_gradient(x, y_gradient, context.stride), None


def weight_gradient(x: Tensor, y_gradient: Tensor, stride: int) -> Tensor:
    """(outputs, channels, 3, 3) of a convolution by 3 × 3 that adds a border of one place.

    Only where the convolution ``can_compute_gradient``. The number of threads changes no bit.

    Args:
        x: (B, channels, H, W), channels last.
        y_gradient: (B, outputs, H', W'), channels last.

    Raises:
        MemoryError: there is none for copies of some rows of an image.
    """
    batch, channels, height, width = x.shape
    _, outputs, y_height, y_width = y_gradient.shape
    result = x.new_empty(outputs, channels, 3, 3)
    failed = compiled_function()(
        *map(Tensor.data_ptr, (x, y_gradient, result)),
        *(batch, height, width, channels, y_height, y_width, outputs, stride),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("There is no memory for the gradient of a convolution's weights.")
    return result
