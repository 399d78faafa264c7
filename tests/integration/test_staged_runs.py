"""Jobs that read staged copies, and go on with the same data in other shards."""

import signal
import sys
from pathlib import Path

import pytest
from test_train import metrics, outcome, wait_for, words

pytestmark = pytest.mark.slow

RESHARD = Path(__file__).resolve().parents[2] / "data_tools" / "reshard.py"


def test_staged_data_and_resharded_data_are_the_data_of_the_run(launch, synthetic, tmp_path) -> None:
    data, local, run = tmp_path / "data", tmp_path / "local", tmp_path / "run"
    # A copy, because its shards will be removed; in other shards than `synthetic` where these are large.
    resharding = [sys.executable, RESHARD, synthetic, "--out", data, "--shard-mb", 1]
    assert launch.program(resharding).code == 0
    more = ["--train.epochs", "4", "--train.eval_every", "4"]
    staged = ["--loader.stage", local]
    process = launch.start(words(data, run, *more, *staged), "mpirun", 2)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(metrics(run, "step")) >= 3)
    process.send_signal(signal.SIGUSR1)
    launch.wait(process)
    assert outcome(run)["reason"] == "preempted"
    (copies,) = local.iterdir()
    shards = {path.name: path.read_bytes() for path in data.glob("*.h5")}
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == shards

    # Unstaged, in the shards it was first packed into.
    ended = launch(words(synthetic, run, *more))
    assert (ended.code, outcome(run)["attempt"]) == (0, 2), ended.output

    for name in shards:
        (data / name).unlink()
    scoring = ["eval", "--weights", run / "weights" / "last.safetensors", "--data", data]
    assert launch([*scoring, "--loader.workers", "1", *staged]).code == 0
    assert launch([*scoring, "--loader.workers", "1"]).code == 65


@pytest.mark.parametrize("launcher", ["single", "mpirun"])
def test_a_place_that_takes_no_copies_is_told_once(launch, synthetic, tmp_path, launcher) -> None:
    (tmp_path / "file").write_text("")
    ended = launch(words(synthetic, tmp_path / "run", "--loader.stage", tmp_path / "file"), launcher, 2)
    told = [line for line in ended.output.splitlines() if line.startswith("hvdyolo")]
    assert (ended.code, len(told)) == (74, 1), ended.output
    assert "cannot write" in told[0]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_copies_nothing(launch, synthetic, tmp_path) -> None:
    ended = launch(words(synthetic, tmp_path / "run", "--loader.stage", tmp_path / "local", "--dry-run"))
    assert ended.code == 0, ended.output
    assert not (tmp_path / "local").exists()
