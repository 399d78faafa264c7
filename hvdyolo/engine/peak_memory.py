"""The most memory that this process has needed."""

import resource

import torch

_MEBIBYTE = 1 << 20


def peak_memory(device: torch.device) -> float:
    """Mebibytes: given to tensors on a GPU, or resident where the model is on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEBIBYTE
