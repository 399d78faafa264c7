"""Starts ``tests/parallel`` on several ranks, under each launcher."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SUITE = Path(__file__).resolve().parents[1] / "parallel"


# Uneven shares and the other launcher change sums between ranks, and nothing that whole runs add to them.
SUMS = [SUITE / "test_collectives.py", SUITE / "test_parity.py", SUITE / "test_precision_of_ranks.py"]


@pytest.mark.parametrize(
    ("launcher", "ranks", "tests"),
    [("mpirun", 2, [SUITE]), ("mpirun", 3, SUMS), ("mpirun", 4, [SUITE]), ("gloo", 2, SUMS)],
)
def test_the_parallel_suite_passes(launch, launcher: str, ranks: int, tests: list[Path]) -> None:
    ended = launch.program(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--color=no", *tests],
        launcher,
        ranks,
        timeout=400,
    )
    assert ended.code == 0, ended.output
    # Every rank ran the tests: a launcher that starts one rank only would pass too.
    assert ended.output.count(" passed") == ranks, ended.output


def test_a_failure_on_one_rank_ends_all_of_them(launch, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((SUITE / "conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(
        "def test_one(comm):\n"
        "    assert comm.world.rank == 0, 'only rank 1 fails'\n"
        "    comm.barrier('that rank 1 never reaches')\n"
    )
    for launcher in ("mpirun", "gloo"):
        ended = launch.program(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
            launcher,
            2,
            timeout=60,
        )
        assert ended.code != 0
        assert "only rank 1 fails" in ended.output
