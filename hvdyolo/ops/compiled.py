"""The functions that setup.py compiled from hvdyolo/ops/native, for this processor."""

import ctypes
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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


def address_of_pixels(image: NDArray[np.uint8]) -> int:
    """Where the first byte of (H, W, 3) is, whose rows are in one piece each."""
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.strides[1:] == (3, 1)
    return image.ctypes.data
