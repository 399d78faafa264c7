"""Opening the communicator that fits how the process was started."""

import os

import torch

from hvdyolo.config import DistributedConfig
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.world import launched_world

# Milliseconds; at Horovod's default of 1 the communication thread polls away the core the model needs.
_CPU_CYCLE_TIME = 50.0
# A step that waits for more than a hundred small sums, one after the other, would take seconds of cycles.
_CPU_CYCLE_TIME_OF_MANY_SUMS = 1.0


def open_communicator(settings: DistributedConfig, *, many_small_sums: bool = False) -> Communicator:
    """Join the other ranks; a process that was started alone stays alone, without touching MPI.

    Args:
        many_small_sums: ranks will wait for many small collectives in each step.
    """
    world = launched_world()
    if world is None or world.size == 1:
        return SingleProcess()
    from hvdyolo.distributed.horovod_communicator import HorovodCommunicator

    chosen = _choose(settings, many_small_sums)
    os.environ.update(chosen)
    return HorovodCommunicator(world, chosen, settings.compression)


def is_lost_peer(error: BaseException) -> bool:
    """Whether ``error`` only says that another rank is gone; that rank's own error tells why."""
    return type(error).__name__ == "HorovodInternalError"


def _choose(settings: DistributedConfig, many_small_sums: bool) -> dict[str, str]:
    """Environment for Horovod and MPI; a user's own variables win, unless the configuration names a value."""
    chosen: dict[str, str] = {}
    if not torch.cuda.is_available():
        cycle = _CPU_CYCLE_TIME_OF_MANY_SUMS if many_small_sums else _CPU_CYCLE_TIME
        chosen["HOROVOD_CYCLE_TIME"] = f"{cycle:g}"
        # A waiting rank leaves its core to the ranks it waits for.
        chosen["OMPI_MCA_mpi_yield_when_idle"] = "1"
    chosen = {name: os.environ.get(name, value) for name, value in chosen.items()}
    if settings.cycle_time is not None:
        chosen["HOROVOD_CYCLE_TIME"] = f"{settings.cycle_time:g}"
    if settings.deterministic:
        # Without fusion every tensor is summed in the same order, whatever the timing.
        chosen["HOROVOD_FUSION_THRESHOLD"] = "0"
    return chosen
