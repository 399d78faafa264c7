"""Gradients side by side in memory, so that many travel as one."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from hvdyolo.ops.tensor_lists import copy_tensors

# As much as torch's own DistributedDataParallel sends at a time: enough that a network's rate counts and not
# its latency, and little enough that most is under way while the backward pass goes on.
_MOST_BYTES = 25 << 20


class GradientBucket:
    """The gradients of some parameters, which have one type and device.

    Attributes:
        parameters: those it is for.
        flat: (elements,) their gradients, one after the other.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        self._parts = [
            part.view_as(parameter)
            for part, parameter in zip(torch.split(self.flat, sizes), parameters, strict=True)
        ]

    def fill(self) -> None:
        """Copy the gradients into ``flat``; those of parameters that took no part in the loss are zero."""
        present = [
            (part, parameter.grad)
            for part, parameter in zip(self._parts, self.parameters, strict=True)
            if parameter.grad is not None
        ]
        if len(present) < len(self._parts):
            self.flat.zero_()
        copy_tensors([part for part, _ in present], [gradient for _, gradient in present])

    def hand_out(self) -> None:
        """Make what ``flat`` holds the parameters' gradients, without a copy."""
        for part, parameter in zip(self._parts, self.parameters, strict=True):
            parameter.grad = part


def bucket_gradients(
    parameters: Iterable[nn.Parameter], most_bytes: int = _MOST_BYTES
) -> list[GradientBucket]:
    """Buckets of ``most_bytes`` at most, or of one parameter, in the order of ``parameters``."""
    buckets: list[list[nn.Parameter]] = []
    kind, room = None, 0
    for parameter in parameters:
        if (parameter.dtype, parameter.device) != kind or parameter.nbytes > room:
            kind, room = (parameter.dtype, parameter.device), most_bytes
            buckets.append([])
        buckets[-1].append(parameter)
        room -= parameter.nbytes
    return [GradientBucket(bucket) for bucket in buckets]
