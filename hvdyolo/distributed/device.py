"""The device and the threads of a rank."""

import torch

from hvdyolo.distributed.world import World
from hvdyolo.utils.cores import available_cores


def choose_device(world: World) -> torch.device:
    """One GPU a rank where there are GPUs, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # SLURM may show a rank all GPUs of its node or its own alone; the remainder fits both.
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def set_threads(world: World, threads: int | None) -> int:
    """Set torch's threads: as given, or this rank's share of the cores it may use."""
    # With one rank a host, or ranks bound to cores of their own, the mask is the share already.
    count = threads or max(available_cores() // world.local_size, 1)
    torch.set_num_threads(count)
    return count
