"""One job at a time in a run directory: with real processes as holders."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from hvdyolo.engine.run_lock import Holder, RunLock, _succeed, _successor_of
from hvdyolo.utils.errors import MismatchError

HOLD = """
import sys, time
from pathlib import Path
from hvdyolo.engine.run_lock import RunLock
RunLock.acquire(Path(sys.argv[1]), 1.0)
print("held", flush=True)
time.sleep(600)
"""


def start_holder(directory: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, directory], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write_holder(directory: Path, **changes: object) -> None:
    """A lock as another process would have left it."""
    holder = dataclasses.replace(Holder.current(), **changes)  # type: ignore[arg-type]
    (directory / "lock").write_text(json.dumps(asdict(holder)))


def elsewhere() -> object:
    return dataclasses.replace(Holder.current().process, host="node7", machine="another boot", pid=4711)


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        lock = RunLock.acquire(tmp_path, expiry=60)
        assert (tmp_path / "lock").exists()
        lock.release()
        assert list(tmp_path.iterdir()) == []


def test_a_living_holder_is_named_at_once(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(MismatchError, match=f"in use by process {holder.pid} on "):
            RunLock.acquire(tmp_path, expiry=60)
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_holder_loses_its_lock_at_once(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunLock.acquire(tmp_path, expiry=600).release()


def test_a_process_number_used_again_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    process = Holder.current().process
    write_holder(tmp_path, process=dataclasses.replace(process, started=process.started - 1))
    RunLock.acquire(tmp_path, expiry=600).release()


def test_a_holder_elsewhere_whose_counter_stands_still_is_dead(tmp_path: Path) -> None:
    write_holder(tmp_path, process=elsewhere())
    RunLock.acquire(tmp_path, expiry=0.5).release()


def test_a_holder_elsewhere_whose_counter_moves_is_alive(tmp_path: Path) -> None:
    write_holder(tmp_path, process=elsewhere(), job="77")
    beat = (
        "import json, sys, time\n"
        "from pathlib import Path\n"
        "for beats in range(1, 60):\n"
        "    path = Path(sys.argv[1])\n"
        "    new = path.with_name('new')\n"
        "    new.write_text(json.dumps(json.loads(path.read_text()) | {'beats': beats}))\n"
        "    new.replace(path)\n"
        "    time.sleep(0.2)\n"
    )
    beater = subprocess.Popen([sys.executable, "-c", beat, tmp_path / "lock"])
    try:
        with pytest.raises(MismatchError, match=r"process 4711 on node7, SLURM job 77"):
            RunLock.acquire(tmp_path, expiry=10)
    finally:
        beater.kill()
        beater.wait()


def test_a_restarted_slurm_job_takes_its_own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_holder(tmp_path, process=elsewhere(), job="77", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    started = time.monotonic()
    RunLock.acquire(tmp_path, expiry=600).release()
    assert time.monotonic() - started < 60


def test_what_is_no_lock_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("somebody's notes")
    with pytest.raises(MismatchError, match="not a lock of this program"):
        RunLock.acquire(tmp_path, expiry=1)
    assert (tmp_path / "lock").read_text() == "somebody's notes"


def test_a_lock_that_was_broken_is_not_given_back_by_its_old_holder(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path, expiry=60)
    write_holder(tmp_path, process=elsewhere())
    lock.release()
    assert json.loads((tmp_path / "lock").read_text())["process"]["pid"] == 4711


def _race(
    directory: Path,
    start: "multiprocessing.synchronize.Event",
    outcomes: "multiprocessing.queues.SimpleQueue[str]",
    over: "multiprocessing.synchronize.Event",
) -> None:
    start.wait()
    try:
        RunLock.acquire(directory, expiry=600)
        outcomes.put("held")
        over.wait()  # who comes late must find it held
    except MismatchError:
        outcomes.put("in use")
    except BaseException as error:
        outcomes.put(repr(error))
    os._exit(0)


def race(directory: Path, racers: int) -> list[str]:
    """What becomes of processes that want the lock at the same moment, sorted."""
    context = multiprocessing.get_context("fork")
    start, outcomes, over = context.Event(), context.SimpleQueue(), context.Event()
    processes = [
        context.Process(target=_race, args=(directory, start, outcomes, over)) for _ in range(racers)
    ]
    for process in processes:
        process.start()
    start.set()
    found = sorted(outcomes.get() for _ in processes)
    over.set()
    for process in processes:
        process.join()
    return found


def died(ticks: int) -> dict[str, object]:
    """A holder on this machine that is dead: its process number has a new owner."""
    process = Holder.current().process
    return {"process": dataclasses.replace(process, started=process.started - ticks), "since": float(ticks)}


def test_of_many_that_break_one_lock_exactly_one_gets_it(tmp_path: Path) -> None:
    for number in range(20):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_holder(directory, **died(1))
        assert race(directory, 6) == ["held"] + 5 * ["in use"]
        assert [path.name for path in directory.iterdir()] == ["lock"]


def test_a_successor_that_died_before_it_took_over_is_followed_in_turn(tmp_path: Path) -> None:
    for number in range(10):
        directory = tmp_path / str(number)
        directory.mkdir()
        line = [dataclasses.replace(Holder.current(), **died(ticks)) for ticks in (1, 2, 3)]
        places = [directory / "lock"]
        places += [_successor_of(places[0], holder) for holder in line[:-1]]
        for place, holder in zip(places, line, strict=True):
            place.write_text(json.dumps(asdict(holder)))
        assert race(directory, 4) == ["held"] + 3 * ["in use"]
        assert [path.name for path in directory.iterdir()] == ["lock"]


def test_who_comes_too_late_to_follow_the_dead_leaves_their_follower_alone(tmp_path: Path) -> None:
    dead = dataclasses.replace(Holder.current(), **died(1))  # as read before somebody else took over
    follower = start_holder(tmp_path)
    try:
        held = (tmp_path / "lock").read_text()
        assert not _succeed(tmp_path / "lock", [dead], Holder.current())
        assert (tmp_path / "lock").read_text() == held
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    finally:
        follower.kill()
        follower.wait()
