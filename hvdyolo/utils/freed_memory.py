"""What the C library does with memory that tensors have left."""

import ctypes
from collections.abc import Mapping

# Parameters of mallopt, from <malloc.h>.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4
_NEVER = -1
_GREATEST_BLOCK = 32 << 20  # bytes; glibc refuses a greater threshold


def keep_freed_memory(environment: Mapping[str, str], at_most: int | None = None) -> bool:
    """Let this process keep the memory it frees, for the next to ask; returns whether it does.

    Torch asks the C library for each tensor on a CPU. By default that takes large blocks from the system and
    gives them back when they are freed, so a step's activations come as new pages, to be found and cleared,
    every time: a tenth of a training step. Kept, they cost nothing, and the process stays as large as it was
    at most.

    Where ``environment`` adjusts the C library already, that stands; others than glibc have no such choice.

    Args:
        at_most: bytes that are kept at the end of the heap, and none of blocks above 32 MiB: for processes
            that may meet one large block, and many others afterwards.
    """
    if "glibc.malloc." in environment.get("GLIBC_TUNABLES", ""):
        return False
    if any(name.startswith("MALLOC_") for name in environment):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    if at_most is not None:
        block = library.mallopt(_MMAP_THRESHOLD, _GREATEST_BLOCK)
        return bool(block and library.mallopt(_TRIM_THRESHOLD, at_most))
    # No block has a mapping of its own, and the heap never shrinks.
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _NEVER))
