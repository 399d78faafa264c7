"""Ranks that fail, die or come late, each rank in a thread and the dead ones in processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdyolo.data import team as team_module
from hvdyolo.data.team import Team
from hvdyolo.utils.errors import DataError, InternalError, StorageError


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_BEAT_SECONDS", "_BEAT_SECONDS", "_WAIT_SECONDS", "_PRINT_SECONDS"):
        monkeypatch.setattr(team_module, name, 0.02)


def run(*calls: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def keep(place: int) -> None:
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=keep, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank waits for ever"
    return results


def never() -> bool:
    return False


def test_one_rank_alone_writes_nothing(tmp_path: Path) -> None:
    with Team(tmp_path / "none", 0, 1) as team:
        team.begin()
        team.add_done(3)
        team.check()
        assert team.done == 3
    assert list(tmp_path.iterdir()) == []


def test_the_others_begin_when_rank_0_does_and_it_hears_what_they_have_done(tmp_path: Path) -> None:
    begun = threading.Event()

    def leader() -> int:
        with Team(tmp_path, 0, 3) as team:
            time.sleep(0.2)
            begun.set()
            team.begin()
            team.add_done(1)
            team.wait(lambda: team.done == 1 + 10 + 20)
            return team.done

    def other(rank: int) -> bool:
        with Team(tmp_path, rank, 3) as team:
            assert team.await_beginning(never)
            in_time = begun.is_set()
            team.add_done(10 * rank)
            time.sleep(0.5)  # rank 0 counts what it has seen alive
            return in_time

    assert run(leader, lambda: other(1), lambda: other(2)) == [31, True, True]


@pytest.mark.parametrize("error", [DataError("a.jpg is broken."), StorageError("disk full.")])
def test_an_error_is_raised_everywhere_as_it_was(tmp_path: Path, error: Exception) -> None:
    def rank(number: int) -> None:
        with Team(tmp_path, number, 3) as team:
            if number == 0:
                team.begin()
            else:
                team.await_beginning(never)
            if number == 2:
                raise error
            team.wait(never)

    results = run(*(lambda number=number: rank(number) for number in range(3)))
    assert [type(result) for result in results] == [type(error)] * 3
    assert [str(result) for result in results] == [str(error)] * 3


def test_a_bug_is_an_internal_error_elsewhere_that_names_the_rank(tmp_path: Path) -> None:
    def rank(number: int) -> None:
        with Team(tmp_path, number, 2) as team:
            if number == 1:
                raise ZeroDivisionError("division by zero")
            team.wait(never)

    results = run(lambda: rank(0), lambda: rank(1))
    assert isinstance(results[1], ZeroDivisionError)
    assert isinstance(results[0], InternalError)
    assert str(results[0]).startswith("Rank 1 on ")
    assert "ZeroDivisionError: division by zero" in str(results[0])


def test_the_failed_rank_leaves_after_rank_0(tmp_path: Path) -> None:
    """The launcher ends all when the first ends, and only rank 0 prints."""
    left: list[int] = []

    def rank(number: int) -> None:
        try:
            with Team(tmp_path, number, 2) as team:
                if number == 1:
                    raise DataError("broken")
                team.wait(never)
        finally:
            left.append(number)

    run(lambda: rank(0), lambda: rank(1))
    assert left == [0, 1]


CHILD = """
import sys, time
from pathlib import Path
from hvdyolo.data.team import Team
with Team(Path(sys.argv[1]), 1, 2) as team:
    team.await_beginning(lambda: False)
    print("working", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_freezes_without_a_word_is_given_up(
    tmp_path: Path, fault: signal.Signals
) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE) as child:

        def leader() -> None:
            with Team(tmp_path, 0, 2, patience=2) as team:
                team.begin()
                assert child.stdout is not None
                assert child.stdout.readline() == b"working\n"
                os.kill(child.pid, fault)
                team.wait(never)

        try:
            with pytest.raises(InternalError, match=r"Rank 1 on .* no sign of life for 2 s; start the same"):
                leader()
        finally:
            child.kill()


def test_a_rank_that_never_comes_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"Rank 1 has given no sign"), Team(tmp_path, 0, 2, 0.3) as team:
        team.wait(never)


def test_what_an_earlier_job_left_is_not_believed(tmp_path: Path) -> None:
    """Neither its failure, nor its beginning."""
    for rank, state in ((0, "working"), (1, "failed")):
        report = {
            "rank": rank, "host": "old", "life": "x", "beat": 9, "state": state, "done": 5, "error": "old",
            "exit_code": 65,
        }  # fmt: skip
        (tmp_path / f"rank-{rank:05d}.json").write_text(json.dumps(report))
    with pytest.raises(InternalError, match="Rank 1 on old"), Team(tmp_path, 0, 2, 0.5) as team:
        team.wait(lambda: team.done > 0)
    (tmp_path / "rank-00000.json").write_text(json.dumps({**report, "rank": 0, "state": "working"}))
    with pytest.raises(InternalError, match=r"Rank 0 on old"), Team(tmp_path, 1, 2, 0.5) as team:
        team.await_beginning(never)


def test_a_rank_that_has_finished_may_be_silent(tmp_path: Path) -> None:
    late = threading.Event()

    def leader() -> str:
        with Team(tmp_path, 0, 2, patience=0.5) as team:
            team.begin()
            team.wait(late.is_set)
        return "done"

    def other() -> None:
        with Team(tmp_path, 1, 2, patience=0.5) as team:
            team.await_beginning(never)
        time.sleep(1.5)
        late.set()

    assert run(leader, other) == ["done", None]


def test_work_that_is_over_is_not_waited_for(tmp_path: Path) -> None:
    with Team(tmp_path / "gone", 1, 2) as team:
        assert not team.await_beginning(lambda: True)
