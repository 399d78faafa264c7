"""The functions that setup.py compiled from hvdyolo/ops/native, for this processor."""

import ctypes
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

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
