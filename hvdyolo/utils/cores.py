"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Cores of the affinity mask: the launcher's and SLURM's share, not the whole machine's."""
    return len(os.sched_getaffinity(0))
