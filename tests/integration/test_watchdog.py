"""Jobs that stand still are ended, and the rank at fault is named: with real processes and real faults."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Trains without end; rank 1 gets stuck at its fourth step in the way that FAULT names.
DRIVER = """
import ctypes, os, sys, time
from hvdyolo.cli import main
from hvdyolo.engine.learner import Learner

train_step = Learner.train_step


def faulty(self, step, *more):
    if self.step == 3 and os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("HOROVOD_RANK")) == "1":
        self.beacon.beat("fault", self.step)
        if FAULT == "python":
            while True:
                pass
        if FAULT == "c":
            ctypes.PyDLL(None).sleep(10_000)  # holds the interpreter's lock
    return train_step(self, step, *more)


Learner.train_step = faulty
sys.exit(main(sys.argv[1:]))
"""


def train_words(data: Path, run: Path) -> list[object]:
    return [
        "train", "--config", "demo", "--data", data, "--run", run, "--loader.image_size", "64",
        "--loader.workers", "1", "--train.batch", "8", "--train.epochs", "500",
        "--train.eval_every", "500", "--distributed.cycle_time", "1", "--watchdog.timeout", "10",
    ]  # fmt: skip


def processes_of(run: Path) -> list[str]:
    """Command lines of living processes that were started for ``run``.

    Ranks name it on their command line; what they start inherits it in the environment that tests give them.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(run) in line or f"TEST_RUN={run}\0" in environment:
                found.append(line)
    return found


@pytest.fixture
def run(launch, tmp_path: Path) -> Path:
    """A run directory whose processes can be found."""
    launch.environment["TEST_RUN"] = str(tmp_path / "run")
    return tmp_path / "run"


def rank_process(run: Path, rank: int) -> int:
    """Process of a rank, from its log."""
    line = (run / "logs" / f"rank-{rank:04d}.log").read_text().splitlines()[0]
    assert f"rank {rank} of" in line
    return int(line.rsplit(" ", 1)[1])


def wait_for(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.1)


def wait_for_steps(run: Path, steps: int) -> None:
    metrics = run / "metrics.jsonl"
    wait_for(
        lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= steps, "training did not start"
    )


def assert_ended_by_watchdog(run: Path, output: str, phase: str) -> None:
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["reason"] == "stalled", output
    assert outcome["exit_code"] == 70
    assert outcome["detail"].startswith("Rank 1 on "), outcome
    assert f"phase '{phase}'" in outcome["detail"]
    assert outcome["detail"] in output
    assert_nothing_is_left(run)


def assert_nothing_is_left(run: Path) -> None:
    deadline = time.monotonic() + 20
    while processes_of(run):
        assert time.monotonic() < deadline, processes_of(run)
        time.sleep(0.2)


@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
@pytest.mark.parametrize("fault", ["python", "c"])
def test_a_rank_that_is_stuck_is_named_and_ends_the_job(
    launch, synthetic, tmp_path, run, launcher, fault
) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(f"FAULT = {fault!r}\n{DRIVER}")
    ended = launch.program([sys.executable, driver, *train_words(synthetic, run)], launcher, 2, timeout=120)
    assert ended.code != 0
    assert_ended_by_watchdog(run, ended.output, "fault")
    assert "in faulty" in (run / "logs" / "rank-0001.stacks").read_text()


@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_a_stopped_rank_is_named_as_stopped(launch, synthetic, run, launcher) -> None:
    process = launch.start([*train_words(synthetic, run), "--train.log_every", "1"], launcher, 2)
    wait_for_steps(run, 3)
    os.kill(rank_process(run, 1), signal.SIGSTOP)
    ended = launch.wait(process, timeout=120)
    assert ended.code != 0
    detail = json.loads((run / "outcome.json").read_text())["detail"]
    assert "(stopped by a signal)" in detail
    assert_ended_by_watchdog(run, ended.output, phase=detail.split("'")[1])


def test_a_killed_rank_ends_the_job_and_the_next_attempt_takes_over(launch, synthetic, run) -> None:
    words = [*train_words(synthetic, run), "--train.checkpoint_every", "1"]
    process = launch.start(words, "mpirun", 2)
    wait_for((run / "checkpoints" / "LATEST").exists, "there is no checkpoint")
    os.kill(rank_process(run, 1), signal.SIGKILL)
    assert launch.wait(process, timeout=60).code != 0
    assert_nothing_is_left(run)
    assert not (run / "outcome.json").exists()  # nobody was left to write it
    assert (run / "lock").exists()
    again = launch.start(words, "mpirun", 2)
    log = run / "logs" / "rank-0000.log"
    wait_for(lambda: "resumed from" in log.read_text(), "the second attempt did not resume")
    again.send_signal(signal.SIGUSR1)
    launch.wait(again)
    assert json.loads((run / "outcome.json").read_text())["exit_code"] == 75


def test_a_healthy_job_leaves_nothing_behind(launch, synthetic, run) -> None:
    ended = launch([*train_words(synthetic, run), "--train.epochs", "1"], "mpirun", 2)
    assert ended.code == 0, ended.output
    assert_nothing_is_left(run)
    for rank in range(2):
        assert list(Path("/dev/shm").glob(f"hvdyolo-beacon-{rank_process(run, rank)}-*")) == []
