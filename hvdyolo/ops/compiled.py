"""The functions that setup.py compiled from hvdyolo/ops/native, for this processor."""

import ctypes
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.utils.errors import UsageError

_NATIVE = Path(__file__).parent / "native"
_PROCESSORS = ("avx512", "avx2", "default")
"""What there are versions for, the most capable first, named as torch names them."""


@dataclass(frozen=True)
class Compiled:
    """A file of functions.

    Attributes:
        processor: what it was compiled for.
        library: the functions by their names in C.
    """

    processor: str
    library: ctypes.CDLL


@cache
def compiled(name: str) -> Compiled | None:
    """``native/NAME.c`` as compiled, or nothing where this installation has it not: no compiler, say."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    fitting = _PROCESSORS[_PROCESSORS.index(capability) :] if capability in _PROCESSORS else _PROCESSORS[-1:]
    for processor in fitting:
        file = _NATIVE / f"{name}_{processor}{sysconfig.get_config_var('EXT_SUFFIX')}"
        try:
            # After torch, whose pool of OpenMP threads it then shares.
            return Compiled(processor, ctypes.CDLL(str(file)))
        except OSError:
            continue
    return None


def require_compiled(name: str, setting: str) -> None:
    """Refuse a setting that needs functions which are not there.

    Raises:
        UsageError: says how to get them.
    """
    if compiled(name) is None:
        raise UsageError(
            f"{setting} needs functions that were not compiled when hvdyolo was installed: install a C "
            "compiler and hvdyolo again."
        )


def holds_its_values(x: Tensor) -> bool:
    """Whether functions may go by the address of ``x``: torch computes with it, now, and not just records.

    A negative bit is a sign that the memory has not.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not recorded and type(x) is Tensor and not x.is_neg()


def as_saved(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A (B, C, H, W) that was saved for a backward pass with channels last, as it was saved.

    Hooks on saved tensors may bring it back in another layout.
    """
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def address_of_pixels(image: NDArray[np.uint8]) -> int:
    """Where the first byte of (H, W, 3) is, whose rows are in one piece each."""
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.strides[1:] == (3, 1)
    return image.ctypes.data
