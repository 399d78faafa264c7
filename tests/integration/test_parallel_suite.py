"""Starts ``tests/parallel`` on several ranks, under each launcher."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SUITE = Path(__file__).resolve().parents[1] / "parallel"


# Uneven shares and the other launcher change sums between ranks, and nothing that whole runs add to them.
SUMS = [SUITE / "test_collectives.py", SUITE / "test_parity.py", SUITE / "test_precision_of_ranks.py"]
# One process without Horovod, where only these compare it with something else than itself.
ALONE = [
    f"{SUITE / 'test_parity.py'}::test_ranks_give_the_gradient_and_updates_of_one_process[2]",
    f"{SUITE / 'test_parity.py'}::test_frozen_layers_take_no_part_and_parts_may_have_rates_of_their_own[2]",
    SUITE / "test_plain_loop.py",
]


@pytest.mark.parametrize(
    ("launcher", "ranks", "tests"),
    [
        ("single", 1, ALONE),
        ("mpirun", 2, [SUITE]),
        ("mpirun", 3, SUMS),
        ("mpirun", 4, [SUITE, f"--ignore={SUITE / 'test_runs_of_one_process.py'}"]),
        ("gloo", 2, SUMS),
    ],
)
def test_the_parallel_suite_passes(launch, launcher: str, ranks: int, tests: list[Path | str]) -> None:
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
