"""Real jobs of two ranks, one of which goes astray: the job notices, says what, and saves nothing of it."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hvdyolo.engine.trainer import _STEPS_BETWEEN_COMPARISONS

pytestmark = pytest.mark.slow

# The command `hvdyolo`, with one thing changed that no user could change.
DAMAGED_WEIGHT = """
import os, sys, torch
from hvdyolo.cli import main
from hvdyolo.engine import trainer
from hvdyolo.engine.learner import Learner

# The end of an epoch, where weights are compared too, comes after 20 steps of these few images.
trainer._STEPS_BETWEEN_COMPARISONS = 5
train_step = Learner.train_step

def damaged(self, step, *more):
    losses = train_step(self, step, *more)
    if self.step == 7 and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        with torch.no_grad():
            self.model.model[3].conv.weight[2, 1, 0, 1] *= 1 + 2**-22
    return losses

Learner.train_step = damaged
sys.exit(main(sys.argv[1:]))
"""

LOSS_WITHOUT_NUMBER = """
import os, sys
from hvdyolo.cli import main
from hvdyolo.engine import learner

train_step, detection_loss = learner.Learner.train_step, learner.detection_loss
spoils = False

def watched(self, step, *more):
    global spoils
    spoils = os.environ["OMPI_COMM_WORLD_RANK"] == "1" and (self.step == 2 or self.step >= 12)
    return train_step(self, step, *more)

def spoiled(levels, *rest):
    return detection_loss([level * float("nan") for level in levels] if spoils else levels, *rest)

learner.Learner.train_step, learner.detection_loss = watched, spoiled
sys.exit(main(sys.argv[1:]))
"""

OTHER_PROCESSOR = """
import os, sys
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    os.environ["ATEN_CPU_CAPABILITY"] = "default"  # as if it had none of the wider instructions
from hvdyolo.cli import main
sys.exit(main(sys.argv[1:]))
"""

SMALL = [
    "--loader.image_size", "64", "--loader.workers", "1", "--optimizer.lr", "0.01",
    "--optimizer.warmup_epochs", "0", "--distributed.cycle_time", "1",
]  # fmt: skip


def command(program: str, data: Path, run: Path, *more: object) -> list[object]:
    words = ["train", "--config", "demo", "--data", data, "--run", run, *SMALL, *more]
    return [sys.executable, "-c", program, *words]


def test_a_weight_that_changes_on_one_rank_ends_the_job_within_100_steps(launch, synthetic, tmp_path) -> None:
    assert _STEPS_BETWEEN_COMPARISONS + 1 < 100
    run = tmp_path / "run"
    more = ["--train.batch", 2, "--optimizer.nominal_batch", 2, "--train.epochs", 2]
    ended = launch.program(command(DAMAGED_WEIGHT, synthetic, run, *more), "mpirun", 2)
    assert ended.code == 70, ended.output
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["exit_code"] == 70
    assert 7 < outcome["step"] <= 7 + 5 + 1
    assert "disagree about model.3.conv.weight: rank 1 on " in outcome["detail"]
    assert ended.output.count(outcome["detail"]) == 1, "told once, not by each rank"
    assert "Traceback" not in ended.output
    assert not list((run / "checkpoints").glob("step-*"))


def test_nan_on_one_rank_is_skipped_by_all_never_saved_and_gives_up_in_the_end(
    launch, synthetic, tmp_path
) -> None:
    """And, in passing, by Horovod's timeline: gradients are reduced once a step of four batches."""
    run, timeline = tmp_path / "run", tmp_path / "timeline.json"
    launch.environment["HOROVOD_TIMELINE"] = str(timeline)
    more = ["--train.batch", 2, "--optimizer.nominal_batch", 8, "--train.epochs", 20]
    more += ["--train.eval_every", 2, "--train.checkpoint_every", 1, "--train.keep_checkpoints", 100]
    ended = launch.program(command(LOSS_WITHOUT_NUMBER, synthetic, run, *more), "mpirun", 2)
    assert ended.code == 70, ended.output
    outcome = json.loads((run / "outcome.json").read_text())
    assert "not finite in 20 steps in a row up to step 31" in outcome["detail"]
    skipped = [f"step {number} was skipped" for number in (3, *range(13, 32))]
    for rank, log in enumerate(sorted((run / "logs").glob("rank-*.log"))):
        lines = [line for line in log.read_text().splitlines() if "was skipped" in line]
        assert [any(words in line for line in lines) for words in skipped] == [True] * 20, lines
        assert len(lines) == 20
        assert all(("nor was this rank's loss" in line) == (rank == 1) for line in lines)
    entries = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    epochs = [entry for entry in entries if entry["kind"] == "epoch"]
    assert [entry["skipped_steps"] for entry in epochs] == [1, 0, 3, 5, 5, 5]
    assert all(0 < entry["box"] < 100 for entry in epochs[:3])
    assert all(100 < entry["peak_memory_mb"] < 10_000 for entry in epochs)
    saved = [*run.rglob("*.safetensors")]
    assert {path.name for path in saved} >= {"best.safetensors", "last.safetensors", "ema.safetensors"}
    for path in saved:
        assert all(value.isfinite().all() for value in load_file(path).values()), path
    steps = outcome["step"] + 1
    reduced = reductions(timeline)
    # All of this network's are one bucket.
    assert {name: number for name, number in reduced.items() if "gradients" in name} == {
        "allreduce.gradients 0": steps
    }
    # Nor is anything else that often, whatever its name.
    assert max(reduced.values()) <= steps + 1
    # The counts of the step that never comes are on their way when the job ends.
    assert steps <= reduced["allreduce.step"] <= steps + 1


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there is but one kind")
def test_processors_that_round_otherwise_are_refused_without_a_run(launch, synthetic, tmp_path) -> None:
    run = tmp_path / "run"
    ended = launch.program(command(OTHER_PROCESSOR, synthetic, run), "mpirun", 2)
    assert ended.code == 2, ended.output
    told = [line for line in ended.output.splitlines() if line.startswith("hvdyolo:")]
    assert len(told) == 1, ended.output
    assert "ATEN_CPU_CAPABILITY=avx2" in told[0]
    assert not run.exists()


def reductions(timeline: Path) -> Counter[str]:
    """How often each tensor was reduced, by its name in Horovod."""
    events = json.loads(timeline.read_text())
    names = {e["pid"]: e["args"].get("name") for e in events if e.get("name") == "process_name"}
    return Counter(names[e["pid"]] for e in events if e.get("name") == "ALLREDUCE" and e["ph"] == "B")
