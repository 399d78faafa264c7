"""Starting and ending a command on all its ranks."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hvdyolo.config import Config
from hvdyolo.data.workers import start_worker_server
from hvdyolo.distributed.binding import lift_binding
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.device import choose_device, share_of_cores, torch_threads
from hvdyolo.distributed.launch import is_lost_peer, open_communicator
from hvdyolo.distributed.watchdog import Beacon, start_watchdog
from hvdyolo.distributed.world import World, launched_world
from hvdyolo.utils.errors import HvdyoloError, InternalError


@dataclass(frozen=True)
class Job:
    """What every distributed command works with.

    Attributes:
        cores: that this rank has for itself.
        threads: torch threads of this rank.
        unbound: that the launcher's own binding to fewer cores was lifted.
    """

    comm: Communicator
    device: torch.device
    beacon: Beacon
    cores: int
    threads: int
    unbound: bool = False


@contextmanager
def open_job(config: Config) -> Iterator[Job]:
    """Bring up this rank: loader server, watchdog, communicator, device.

    An error that all ranks raise ends the job in order. One of this rank alone would leave the others
    waiting for it for ever, so it is told here and the job is aborted.
    """
    unbound = lift_binding()
    # Before MPI starts: its environment must not reach children, and forking after it is unsafe.
    start_worker_server()
    beacon = Beacon()
    watchdog = start_watchdog(beacon, launched_world(), None, config.watchdog.start_timeout)
    try:
        beacon.beat("start communication", 0)
        comm = open_communicator(config.distributed, many_small_sums=config.train.sync_batch_norm)
        try:
            device = choose_device(comm.world)
            cores = share_of_cores(comm)
            threads = config.distributed.threads or torch_threads(device, cores)
            torch.set_num_threads(threads)
            yield Job(comm, device, beacon, cores, threads, unbound)
        except BaseException as error:
            if comm.world.size > 1 and not getattr(error, "agreed", False):
                tell_failure(error, comm.world)
                comm.abort(exit_code_of(error))
            raise
        finally:
            beacon.beat("end communication", 0)
            comm.close()
    finally:
        watchdog.stop()
        beacon.close()


def exit_code_of(error: BaseException) -> int:
    """The exit code a command ends with after ``error``."""
    return error.exit_code if isinstance(error, HvdyoloError) else InternalError.exit_code


def tell_failure(error: BaseException, world: World | None) -> None:
    """Print one sentence for a user's mistake, a traceback for a bug, with the rank it happened on."""
    where = f" (rank {world.rank} on {world.host})" if world is not None and world.size > 1 else ""
    if isinstance(error, HvdyoloError):
        print(f"hvdyolo{where}: {error}", file=sys.stderr, flush=True)
    elif is_lost_peer(error):
        reason = str(error).partition("\n")[0]
        print(
            f"hvdyolo{where}: communication with the other ranks broke: {reason}", file=sys.stderr, flush=True
        )
    else:
        trace = "".join(traceback.format_exception(error))
        print(f"hvdyolo: internal error{where}\n{trace}", file=sys.stderr, flush=True)
