"""Two ranks reduce a tensor through Horovod and a number through mpi4py: the environment works.

Started under mpirun by scripts/make_env.sh, before it calls an environment ready.
"""

import sys

import h5py
import horovod
import horovod.torch as hvd
import torch
from mpi4py import MPI


def main() -> None:
    hvd.init()
    ranks = hvd.size()
    expected = float(sum(range(1, ranks + 1)))
    reduced = hvd.allreduce(torch.full((1000,), hvd.rank() + 1.0), op=hvd.Sum, name="verify")
    counted = MPI.COMM_WORLD.allreduce(hvd.rank() + 1)
    if ranks < 2 or not bool((reduced == expected).all()) or counted != expected:
        sys.exit(f"rank {hvd.rank()} of {ranks}: sums {reduced[0].item()} and {counted}, not {expected}")
    if hvd.rank() == 0:
        library = MPI.Get_library_version().split(",")[0].strip()
        backends = [name for name in ("mpi", "gloo", "nccl") if getattr(hvd, f"{name}_built")()]
        print(
            f"VERIFIED Python {sys.version.split()[0]}, torch {torch.__version__}, Horovod "
            f"{horovod.__version__} ({', '.join(backends)}), {library}, h5py {h5py.__version__}"
        )
    hvd.shutdown()


if __name__ == "__main__":
    main()
