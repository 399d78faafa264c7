"""The device, the cores and the threads of a rank."""

import os
from collections import Counter
from collections.abc import Sequence

import torch

from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.world import World
from hvdyolo.utils.errors import UsageError
from hvdyolo.utils.process_identity import ProcessIdentity


def choose_device(world: World) -> torch.device:
    """One GPU a rank where there are GPUs, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # SLURM may show a rank all GPUs of its node or its own alone; the remainder fits both.
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def check_devices(comm: Communicator, device: torch.device) -> None:
    """See that each rank has a device of its own, and all of one kind.

    Raises:
        UsageError: on every rank; NCCL would hang or fail without a word of the cause, and processors of two
            kinds would soon have other weights.
    """
    name = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    instructions = torch.backends.cpu.get_cpu_capability()
    gathered = comm.gather_objects("devices", (comm.world.host, name, instructions))
    mistake = find_mistake([(host, gpu) for host, gpu, _ in gathered])
    if mistake is None and name is None:
        mistake = find_other_processor([(host, used) for host, _, used in gathered])
    if mistake is not None:
        error = UsageError(mistake)
        error.agreed = True
        raise error


def find_mistake(places: Sequence[tuple[str, str | None]]) -> str | None:
    """What is wrong with the devices of ranks: host and GPU, ``None`` for a CPU."""
    gpus = [place for place in places if place[1] is not None]
    if not gpus:
        return None
    for host, name in places:
        if name is None:
            return f"{host} has no usable GPU and other hosts have; give the job nodes of one kind."
    (host, _), ranks = Counter(gpus).most_common(1)[0]
    if ranks > 1:
        return (
            f"{ranks} ranks on {host} share one GPU, and each needs its own; start as many ranks a node as "
            "it has GPUs."
        )
    return None


def find_other_processor(places: Sequence[tuple[str, str]]) -> str | None:
    """What is wrong with the processors of ranks: host and the instructions that torch uses there.

    Each rank clips and applies the summed gradient by itself, and torch adds up in another order with wider
    instructions: weights would differ in their last bits, and a comparison of them end the job.
    """
    hosts = {used: host for host, used in reversed(places)}  # the first of each
    if len(hosts) == 1:
        return None
    where = " and ".join(f"with {used} on {host}" for used, host in sorted(hosts.items()))
    return (
        f"torch computes {where}, and gets other last digits; give the job nodes of one kind, or every rank "
        "ATEN_CPU_CAPABILITY=avx2 (or default) in its environment."
    )


def torch_threads(device: torch.device, cores: int) -> int:
    """How many threads torch's own operations on a processor use, of a rank with so many ``cores``.

    Beside a GPU there is next to nothing to divide, and threads that wait for the next operation spin: 16 of
    them took 7 cores from the loader and the launching of kernels, and a training was 2.5 times as slow.
    """
    return 1 if device.type == "cuda" else cores


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
