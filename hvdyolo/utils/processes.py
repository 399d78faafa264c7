"""Environments for child processes of a rank."""

import os

# A child that carries these believes it is a rank: MPI_Init in it aborts the whole job.
_LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HOROVOD_")


def environment_without_launcher() -> dict[str, str]:
    """A copy of the environment in which a child process does not take itself for a rank."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_PREFIXES)}
