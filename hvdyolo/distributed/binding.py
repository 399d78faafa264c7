"""The cores that a launcher gives a rank.

Open MPI binds unless told not to: two ranks to a core each, more of them to a socket each. That is made for
ranks of one thread. Here a rank has several, and loader workers, which share its cores: on a larger host most
of it would stand idle. So where nobody asked for that binding, it is lifted.
"""

import os
from collections.abc import Mapping

_ASKED_FOR = ("OMPI_MCA_hwloc_base_", "OMPI_MCA_orte_rankfile")
"""Beginnings of what `--bind-to`, `--cpu-list`, `--rankfile` and their like put into the environment."""


def is_bound_unasked(environment: Mapping[str, str]) -> bool:
    """Whether Open MPI bound this rank, and neither the command nor the environment said so."""
    if environment.get("OMPI_MCA_orte_bound_at_launch") != "1":
        return False
    # `--map-by slot:pe=4` is also a wish: so many cores a rank.
    cores_a_rank = "pe=" in environment.get("OMPI_MCA_rmaps_base_mapping_policy", "").lower()
    return not cores_a_rank and not any(name.startswith(_ASKED_FOR) for name in environment)


def lift_binding() -> bool:
    """Give this process the launcher's own cores if it was bound unasked; returns whether it was.

    Threads and children inherit cores as they start, so it comes before any.
    """
    own, launchers = os.sched_getaffinity(0), os.sched_getaffinity(os.getppid())
    # A shell between launcher and rank is bound too: then there is nothing to see and nothing is changed.
    if not is_bound_unasked(os.environ) or not own < launchers:
        return False
    os.sched_setaffinity(0, launchers)
    return True
