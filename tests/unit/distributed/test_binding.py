"""Which bindings of Open MPI nobody asked for, and lifting them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvdyolo.distributed.binding import is_bound_unasked

BOUND = {"OMPI_MCA_orte_bound_at_launch": "1"}
needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="there is one core, to which nothing can be bound"
)


# As Open MPI 4.1 sets them for each way to start ranks.
@pytest.mark.parametrize(
    ("environment", "unasked"),
    [
        ({}, False),  # no launcher
        ({"OMPI_MCA_hwloc_base_binding_policy": "none"}, False),
        (BOUND, True),
        (BOUND | {"OMPI_MCA_rmaps_base_mapping_policy": "ppr:1:node"}, True),
        (BOUND | {"OMPI_MCA_hwloc_base_binding_policy": "core"}, False),
        (BOUND | {"OMPI_MCA_hwloc_base_bind_to_core": "1"}, False),
        (BOUND | {"OMPI_MCA_hwloc_base_cpu_list": "0"}, False),
        (BOUND | {"OMPI_MCA_rmaps_base_mapping_policy": "slot:PE=4"}, False),
        (BOUND | {"OMPI_MCA_orte_rankfile": "ranks"}, False),
    ],
)
def test_only_what_nobody_asked_for_is_lifted(environment: dict[str, str], unasked: bool) -> None:
    assert is_bound_unasked(environment) is unasked


RANK = """
import os
from hvdyolo.distributed.binding import lift_binding
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(lift_binding(), len(os.sched_getaffinity(0)))
"""


@needs_two_cores
@pytest.mark.parametrize(("variables", "expected"), [(BOUND, "True all"), ({}, "False 1")])
def test_a_rank_gets_its_launchers_cores(variables: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_")}
    ended = subprocess.run(
        [sys.executable, "-c", RANK], env=environment | variables, capture_output=True, text=True, check=True
    )
    cores = len(os.sched_getaffinity(0))
    assert ended.stdout.split() == expected.replace("all", str(cores)).split()


@needs_two_cores
def test_open_mpi_binds_two_ranks_and_they_are_freed() -> None:
    """The variables above are those of the Open MPI that is installed."""
    program = (
        "import os; from hvdyolo.distributed.binding import lift_binding;"
        "print(len(os.sched_getaffinity(0)), lift_binding())"
    )
    mpirun = Path(sys.executable).parent / "mpirun"
    for options, expected in ([], ["1", "True"]), (["--bind-to", "core"], ["1", "False"]):
        ended = subprocess.run(
            [mpirun, "-np", "2", *options, sys.executable, "-c", program],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert [line.split() for line in ended.stdout.splitlines()] == [expected] * 2
