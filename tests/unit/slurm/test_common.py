"""The functions of slurm/common.sh, without SLURM: whether to requeue, and the mpirun line."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvdyolo.utils.files import write_json

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "slurm"
BIN = Path(sys.executable).parent


def shell(script: str, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run ``script`` after common.sh, in an environment that knows no job."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "HOROVOD_", "NCCL_", "LD_LIBRARY_PATH", "HDF5_"))
    }
    environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | variables
    script = f'source "{SCRIPTS}/common.sh"; {script}'
    return subprocess.run(
        ["bash", "-uo", "pipefail", "-c", script, "test", *map(str, words)],
        env=environment, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "progress", "restarts", "ended_by_slurm", "decision"),
    [
        ("preempted", "yes", 0, "no", "requeue: preempted, restart 1 of at most 3"),
        ("stalled", "yes", 1, "no", "requeue: stalled, restart 2 of at most 3"),
        ("died", "yes", 2, "no", "requeue: died, restart 3 of at most 3"),
        ("preempted", "no", 0, "no", "no requeue: preempted, and nothing was saved in this attempt"),
        ("died", "yes", 3, "no", "no requeue: died, after 3 restarts of at most 3"),
        ("preempted", "yes", 0, "yes", "no requeue: preempted, as SLURM ends the job"),
        ("died", "yes", 0, "unknown", "no requeue: died, as SLURM does not tell whether it ends the job"),
        ("done", "yes", 0, "no", "no requeue: done"),
        ("usage", "yes", 0, "no", "no requeue: usage"),
        ("data", "yes", 0, "no", "no requeue: data"),
        ("internal", "yes", 0, "no", "no requeue: internal"),
        ("storage", "yes", 0, "no", "no requeue: storage"),
        ("mismatch", "yes", 0, "no", "no requeue: mismatch"),
        ("a reason of a later version", "yes", 0, "no", "no requeue: a reason of a later version"),
    ],
)
def test_decision(reason: str, progress: str, restarts: int, ended_by_slurm: str, decision: str) -> None:
    assert shell('decide "$@"', reason, progress, restarts, 3, ended_by_slurm).stdout == decision


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Stand-ins: scontrol tells of a running job and notes what it is asked; it answers after $BUSY times."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/asked"\n'
        f'[ "$(grep -c "^$1" "{tmp_path}/asked")" -gt "${{BUSY:-0}}" ] || exit 1\n'
        '[ "$1" = show ] && echo "   JobState=${STATE:-RUNNING} Reason=None"\nexit 0\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def end_attempt(
    tmp_path: Path,
    programs: Path,
    outcome: dict[str, object] | str | None,
    *,
    attempt_before: int = 0,
    step: int = 20,
    step_before: int = 10,
    mpirun_code: int = 1,
    **variables: str,
) -> tuple[int, bool, str]:
    """Exit code, whether the job was requeued, and what was said, after an attempt at a training."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "LATEST").write_text(f"step-{step:08d}\n")
    if outcome is not None:
        text = outcome if isinstance(outcome, str) else json.dumps({"attempt": 1, "detail": ""} | outcome)
        (run / "outcome.json").write_text(text)
    ended = shell(
        'sleep() { :; }; terminated=no HVDYOLO_MOST_RESTARTS=5; end_attempt train "$@"',
        run, attempt_before, step_before, mpirun_code,
        **({"SLURM_JOB_ID": "7", "PATH": f"{programs}:{BIN}:{os.environ['PATH']}"} | variables),
    )  # fmt: skip
    assert ended.stderr == ""
    asked = (tmp_path / "asked").read_text().splitlines()
    return ended.returncode, any(line.startswith("requeue") for line in asked), "\n".join(asked)


@pytest.mark.parametrize(
    ("reason", "code", "requeued"),
    [
        ("preempted", 75, True),
        ("stalled", 70, True),
        ("internal", 70, False),
        ("data", 65, False),
        ("storage", 74, False),
        ("mismatch", 78, False),
        ("usage", 2, False),
        ("done", 0, False),
    ],
)
def test_the_outcome_counts_not_what_the_launcher_made_of_it(
    tmp_path: Path, programs: Path, reason: str, code: int, requeued: bool
) -> None:
    ended = end_attempt(tmp_path, programs, {"reason": reason, "exit_code": code}, mpirun_code=137)
    assert ended[:2] == (code, requeued)


@pytest.mark.parametrize(
    ("mpirun_code", "requeued"),
    [
        (137, True), (1, True), (70, True), (75, True),
        (0, False), (2, False), (65, False), (74, False), (78, False),
    ],
)  # fmt: skip
def test_without_an_outcome_of_this_attempt_the_exit_code_counts(
    tmp_path: Path, programs: Path, mpirun_code: int, requeued: bool
) -> None:
    earlier = {"reason": "done", "exit_code": 0, "attempt": 3}
    ended = end_attempt(tmp_path, programs, earlier, attempt_before=3, mpirun_code=mpirun_code)
    assert ended[:2] == (mpirun_code, requeued)


@pytest.mark.parametrize(
    "outcome", [None, "", "{", "[]", '{"attempt": "x"}', '{"attempt": 1}', '{"attempt": null}']
)
def test_an_unreadable_outcome_is_none(tmp_path: Path, programs: Path, outcome: str | None) -> None:
    assert end_attempt(tmp_path, programs, outcome, mpirun_code=137)[:2] == (137, True)


def test_no_requeue_without_progress(tmp_path: Path, programs: Path) -> None:
    preempted = {"reason": "preempted", "exit_code": 75}
    assert end_attempt(tmp_path, programs, preempted, step=10)[:2] == (75, False)


def test_no_requeue_of_a_cancelled_job(tmp_path: Path, programs: Path) -> None:
    assert end_attempt(tmp_path, programs, None, STATE="COMPLETING")[1] is False


def test_no_requeue_after_too_many_restarts(tmp_path: Path, programs: Path) -> None:
    assert end_attempt(tmp_path, programs, None, SLURM_RESTART_COUNT="5")[1] is False


def test_a_busy_controller_is_asked_again(tmp_path: Path, programs: Path) -> None:
    code, requeued, asked = end_attempt(tmp_path, programs, None, mpirun_code=137, BUSY="3")
    assert (code, requeued) == (137, True)
    assert asked.splitlines() == ["show job 7"] * 4 + ["requeue 7"] * 4


def test_no_requeue_where_slurm_does_not_answer(tmp_path: Path, programs: Path) -> None:
    # It may be a cancelled job.
    assert end_attempt(tmp_path, programs, None, mpirun_code=137, BUSY="99")[:2] == (137, False)


def test_an_environment_that_is_gone_is_no_outcome(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"attempt": 1, "exit_code": 0, "reason": "done", "detail": ""}')
    script = 'python() { return 127; }; read_outcome "$1"; echo "${outcome[0]}"'
    assert shell(script, tmp_path).stdout == "0\n"


def test_an_array_task_is_requeued_by_its_own_name(tmp_path: Path, programs: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    asked = end_attempt(tmp_path, programs, None, **array)[2]
    assert asked.splitlines()[-1] == "requeue 5_2"


def test_finished_parts_are_the_progress_of_a_detection(tmp_path: Path) -> None:
    assert shell('saved detect "$1"', tmp_path).stdout == "0"
    (tmp_path / "parts").mkdir()
    for name in ("part-00000000.jsonl", "part-00000009.jsonl", ".part-00000001.jsonl.host.1.2.tmp"):
        (tmp_path / "parts" / name).touch()
    assert shell('saved detect "$1"', tmp_path).stdout == "2"


def test_the_last_checkpoint_is_the_progress_of_a_training(tmp_path: Path) -> None:
    assert shell('saved train "$1"', tmp_path).stdout == "0"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "LATEST").write_text("step-00000089\n")  # not octal
    assert shell('saved train "$1"', tmp_path).stdout == "89"
    # An epoch that had been left in its evaluation and is over now has no more steps than before.
    state = tmp_path / "checkpoints" / "step-00000089" / "state.json"
    state.parent.mkdir()
    for epoch in (8, 9):
        values = {"step": 89, "epoch": epoch, "best_epoch": 5, "evaluated_epoch": 7}
        write_json(state, values)
        assert shell('saved train "$1"', tmp_path).stdout == f"{89 + epoch}"


GOLDEN = (
    "hvdyolo: on gpu[1-4]: mpirun --bind-to none --map-by ppr:8:node --mca odls_base_sigkill_timeout 10 "
    "--mca oob_tcp_if_include ib0 --mca btl_tcp_if_include ib0 "
    "-x PATH -x HDF5_USE_FILE_LOCKING -x HOROVOD_CYCLE_TIME -x NCCL_DEBUG -x UCX_TLS=rc "
    """bash -c 'trap "" USR1; exec "$@"' rank hvdyolo train --run 'my run' --x 'it'\\''s'\n"""
)


def test_the_printed_line_is_golden() -> None:
    script = (
        "HVDYOLO_INTERFACE=ib0 HVDYOLO_SECONDS_TO_SAVE=10 HVDYOLO_MPIRUN_ARGUMENTS=(-x UCX_TLS=rc); "
        'build_mpirun_line hvdyolo train "$@"; print_mpirun_line'
    )
    printed = shell(
        script, "--run", "my run", "--x", "it's",
        SLURM_NTASKS_PER_NODE="8", SLURM_JOB_NODELIST="gpu[1-4]", HDF5_USE_FILE_LOCKING="FALSE",
        NCCL_DEBUG="INFO", HOROVOD_CYCLE_TIME="5", OTHER="not passed",
    ).stdout  # fmt: skip
    assert printed == GOLDEN


@pytest.mark.parametrize(("tasks", "ranks"), [("8", "8"), ("8(x4)", "8"), ("1(x2)", "1")])
def test_ranks_per_node_are_tasks_per_node(tasks: str, ranks: str) -> None:
    assert shell("ranks_per_node", SLURM_TASKS_PER_NODE=tasks).stdout == ranks


def test_uneven_nodes_are_a_usage_error() -> None:
    ended = shell(
        "HVDYOLO_INTERFACE=; HVDYOLO_MPIRUN_ARGUMENTS=(); build_mpirun_line true; echo after",
        SLURM_TASKS_PER_NODE="2,1",
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--ntasks-per-node" in ended.stderr


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--data", "d", "--run", "r 1"], "r 1"),
        (["--run=r", "--data", "d"], "r"),
        (["--run", "a", "--run", "b"], "b"),
        (["--runs", "a"], ""),
        (["--run"], ""),
    ],
)
def test_the_value_of_an_option(words: list[str], value: str) -> None:
    assert shell('option_value --run "$@"', *words).stdout == value


# A rank that is deaf for its first second, as while importing.
RANK = (
    "import signal, sys, time; open(sys.argv[1], 'w').close(); time.sleep(1); "
    "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); time.sleep(60)"
)


def exit_code_after_signal(tmp_path: Path, number: signal.Signals, prepare: str, when: str) -> int:
    """What a script exits with that gets ``number`` as soon as the file ``when`` exists."""
    process = subprocess.Popen(
        ["bash", "-uo", "pipefail", "-c",
         f'source "{SCRIPTS}/common.sh"; mpirun_line=("$@"); remember_stop; {prepare}; '
         'sleep() { command sleep 0.5; }; run_with_signals; exit "$mpirun_code"',
         "test", sys.executable, "-c", RANK, tmp_path / "started"],
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / when).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        return process.wait(30)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_signals_reach_the_ranks_and_their_exit_code_comes_back(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    assert exit_code_after_signal(tmp_path, number, ":", "started") == code


def test_a_request_to_stop_that_comes_before_the_ranks_is_kept_for_them(tmp_path: Path) -> None:
    prepare = f'touch "{tmp_path}/preparing"; sleep 1'
    assert exit_code_after_signal(tmp_path, signal.SIGUSR1, prepare, "preparing") == 75


@pytest.mark.parametrize("script", ["train.sh", "detect.sh"])
def test_a_request_to_stop_is_kept_while_modules_are_loaded(script: str) -> None:
    lines = (SCRIPTS / script).read_text().splitlines()
    assert lines.index("remember_stop") < lines.index('prepare_site "$here"')


def test_no_environment_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("HVDYOLO_ENVIRONMENT=/nowhere\n")
    ended = shell(f'prepare_site "{tmp_path}"; echo after')
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "/nowhere" in ended.stderr


def test_a_site_may_use_what_is_unset_as_modules_do(tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text('[ -z "$NOT_SET" ] && export FROM_SITE=1\n')
    ended = shell(f'prepare_site "{tmp_path}"; echo "$FROM_SITE"; echo "$NOT_SET_EITHER"; echo after')
    assert ended.stdout == "1\n"
    assert "NOT_SET_EITHER: unbound variable" in ended.stderr  # the rest stays strict


def test_a_site_that_fails_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("(exit 3)\n")
    ended = shell(f'prepare_site "{tmp_path}"; echo after')
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"hvdyolo: {tmp_path}/site.sh ended with 3; mend it.\n"


def test_the_example_of_a_site_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text((SCRIPTS / "site.example.sh").read_text())
    script = (
        f'prepare_site "{tmp_path}"; echo "$HVDYOLO_MOST_RESTARTS ${{#HVDYOLO_MPIRUN_ARGUMENTS[@]}}"; env'
    )
    ended = shell(script)
    assert ended.stdout.startswith("20 0\n"), ended.stderr
    assert "HDF5_USE_FILE_LOCKING=FALSE" in ended.stdout.splitlines()


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted(path.name for path in SCRIPTS.glob("*.sh") if path.name != "site.sh")
    assert {"train.sh", "eval.sh", "detect.sh", "pack.sh", "common.sh", "site.example.sh"} <= set(scripts)
    checked = subprocess.run(
        [BIN / "shellcheck", "-x", *(f"slurm/{name}" for name in scripts)],
        cwd=ROOT, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert checked.stdout == ""
    assert checked.returncode == 0
