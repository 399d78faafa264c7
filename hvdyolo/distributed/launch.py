"""Opening the communicator that fits how the process was started."""

import os
from collections.abc import Mapping

import torch

from hvdyolo.config import DistributedConfig
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.world import launched_world

# Milliseconds. A step waits for half a cycle on average, which is what counts where GPUs compute. On CPUs the
# ranks' agreement once a cycle costs the core that the model needs: 0.5 % of it with 20 ms, 2 to 3 % with 10.
_GPU_CYCLE_TIME = 1.0
_CPU_CYCLE_TIME = 20.0
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

    chosen = choose_environment(
        settings, gpus=torch.cuda.is_available(), many_small_sums=many_small_sums, given=os.environ
    )
    os.environ.update(chosen)
    return HorovodCommunicator(world, chosen, settings.compression)


def is_lost_peer(error: BaseException) -> bool:
    """Whether ``error`` only says that another rank is gone; that rank's own error tells why."""
    return type(error).__name__ == "HorovodInternalError"


def choose_environment(
    settings: DistributedConfig, *, gpus: bool, given: Mapping[str, str], many_small_sums: bool = False
) -> dict[str, str]:
    """Variables for Horovod and MPI, which read them as they start.

    Args:
        settings: what they name comes before all else.
        gpus: the model is on GPUs.
        many_small_sums: ranks will wait for many small collectives in each step.
        given: the user's own environment, which comes before what is chosen here.
    """
    if gpus:
        cycle = _GPU_CYCLE_TIME
    else:
        cycle = _CPU_CYCLE_TIME_OF_MANY_SUMS if many_small_sums else _CPU_CYCLE_TIME
    chosen = {
        "HOROVOD_CYCLE_TIME": f"{cycle:g}",
        # On CPUs a waiting rank leaves its core to the ranks it waits for; beside GPUs cores are to spare.
        "OMPI_MCA_mpi_yield_when_idle": "0" if gpus else "1",
        # Gradients are together already. What Horovod joined as it happens to be there would be copied once
        # more, and summed over three ranks or more in another order each time.
        "HOROVOD_FUSION_THRESHOLD": "0",
    }
    chosen = {name: given.get(name, value) for name, value in chosen.items()}
    if settings.cycle_time is not None:
        chosen["HOROVOD_CYCLE_TIME"] = f"{settings.cycle_time:g}"
    return chosen
