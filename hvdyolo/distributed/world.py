"""Who a process is among the ranks of its job."""

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """A rank's place in the job and on its host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str

    @classmethod
    def alone(cls) -> "World":
        """The only rank there is."""
        return cls(rank=0, size=1, local_rank=0, local_size=1, host=_host())


def _host() -> str:
    """This host, and what SLURM calls it where that is another name."""
    host = socket.gethostname()
    node = os.environ.get("SLURMD_NODENAME", "")
    return host if node in ("", host, host.partition(".")[0]) else f"{host} (SLURM node {node})"


# rank, size, local rank, local size, as each launcher names them. Horovod's come first: under
# `horovodrun --gloo` inside an MPI job both are set, and Horovod's are the ones that count.
_LAUNCHERS = (
    ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)  # fmt: skip


def launched_world() -> World | None:
    """What the launcher said in the environment; ``None`` where there was no launcher."""
    for rank, size, local_rank, local_size in _LAUNCHERS:
        if rank in os.environ and size in os.environ:
            return World(
                rank=int(os.environ[rank]),
                size=int(os.environ[size]),
                local_rank=int(os.environ.get(local_rank, 0)),
                local_size=int(os.environ.get(local_size, 1)),
                host=_host(),
            )
    return None
