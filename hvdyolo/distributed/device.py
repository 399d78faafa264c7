"""The device, the cores and the threads of a rank."""

import os
from collections import Counter

import torch

from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.world import World
from hvdyolo.utils.process_identity import ProcessIdentity


def choose_device(world: World) -> torch.device:
    """One GPU a rank where there are GPUs, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # SLURM may show a rank all GPUs of its node or its own alone; the remainder fits both.
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def share_of_cores(comm: Communicator) -> int:
    """How many cores this rank has for itself, those that others may use too being divided among them.

    Launchers bind each rank to cores of its own, or leave all ranks of a host the same ones: only looking at
    all masks tells.
    """
    mine = os.sched_getaffinity(0)
    machine = ProcessIdentity.current().machine
    masks = comm.gather_objects("cores", (machine, sum(1 << core for core in mine)))
    users = Counter(core for where, mask in masks if where == machine for core in mine if mask >> core & 1)
    return max(int(sum(1 / users[core] for core in mine) + 1e-6), 1)
