"""Memory that loader workers fill and the training process reads, allocated once for all batches.

Batches that each came in memory of their own would cost more than they take to make: for the system has to
find and clear new pages for 1.2 MB an image (640 pixels), 3 ms, every time.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvdyolo.utils.errors import StorageError

_SHARED_MEMORY = Path("/dev/shm")  # where torch has it on Linux; containers often have 64 MB


@dataclass(frozen=True, eq=False)
class SharedImages:
    """A ring of image batches for each worker.

    A worker is at most ``prefetch`` batches ahead of the one that was taken last, so with one more in the
    ring it never writes into that; what was taken has to be copied before the next is asked for.
    """

    ring: Tensor
    """uint8 (workers, prefetch + 1, most slots of a worker, size, size, 3)."""

    @staticmethod
    def allocate(workers: int, prefetch: int, slots: int, size: int) -> "SharedImages":
        """A ring for all workers of a rank.

        Raises:
            StorageError: the host has too little shared memory; who fills it all the same is killed.
        """
        shape = (workers, prefetch + 1, slots, size, size, 3)
        needed, free = torch.Size(shape).numel(), _free_bytes()
        if needed > free:
            raise StorageError(
                f"loader workers share {needed >> 20} MiB of memory with their rank and {_SHARED_MEMORY} has "
                f"{free >> 20} MiB; enlarge it, or lower loader.workers or loader.prefetch."
            )
        ring: Tensor = torch.empty(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        return SharedImages(ring)

    def batch(self, worker: int, step: int, slots: int) -> Tensor:
        """(slots, size, size, 3): where a worker's images of a step are."""
        return self.ring[worker, step % self.ring.shape[1], :slots]


def _free_bytes() -> int:
    status = os.statvfs(_SHARED_MEMORY)
    return status.f_bavail * status.f_frsize
