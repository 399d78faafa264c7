"""A run that is stopped before any of its steps and resumed ends with the bits of one that was not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from safetensors.torch import load_file
from small_training import BATCHES, attempt, configuration, one_thread_job, saved
from torch.amp.grad_scaler import GradScaler

from hvdyolo.config import Config
from hvdyolo.engine import training

FIRST_SCALE = 2.0**20


def restless_scaler(precision: str, *_: object) -> GradScaler:
    """Overflows in its first steps, and is soon halved and doubled again: whatever is lost of it shows."""
    return GradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=3, enabled=precision == "fp16")


@pytest.fixture
def train(synthetic, tmp_path, monkeypatch):
    """Trains a run until its end, for so many steps or into an evaluation.

    Returns the steps it has in all, and what it saved.
    """
    monkeypatch.setattr(training, "gradient_scaler", restless_scaler)
    with one_thread_job() as job:

        def train(config: Config, run: str, stop: int | Literal["evaluating"] | None, resume: str = "auto"):
            done = attempt(config, synthetic, tmp_path / run, job, stop, monkeypatch, resume)
            return done, saved(tmp_path / run)

        yield train


def differing(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name, value in expected.items() if value != found[name]]


def test_stopped_before_every_step_and_resumed_a_run_ends_with_the_same_bits(train, tmp_path: Path) -> None:
    """In fp16, which has all that other precisions have to keep, and the scale of the loss."""
    config = configuration(tmp_path)
    steps, expected = train(config, "whole", None)
    assert steps < 3 * BATCHES, "nothing was accumulated"
    waited = set()
    for number in range(1, steps):
        done, stopped = train(config, "parts", 1)
        assert done == number
        waited.add((stopped["best_epoch"], stopped["evaluated_epoch"], stopped["batch"] > 0))
    done, found = train(config, "parts", None)
    assert done == steps
    assert not differing(found, expected)
    assert (expected["step"], expected["epoch"]) == (steps, 3)
    # There were stops between the steps of an epoch before any AP, with one that was the best, and with
    # patience running out. Without the latter there would be a fourth epoch.
    assert {(0, 0, True), (1, 1, True), (1, 2, True)} <= waited
    assert expected["best_ap"] > 0
    assert expected["scaler"]["scale"] < FIRST_SCALE
    assert expected["scaler"]["_growth_tracker"] > 0


def epochs_of(run: Path) -> list[dict[str, object]]:
    """What was told of each epoch, but for times and memory."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = ("epoch", "step", "box", "objectness", "classification", "skipped_steps", "lr", "ap")
    return [{key: entry[key] for key in told} for entry in entries if entry["kind"] == "epoch"]


def test_stopped_within_evaluations_a_run_evaluates_first_and_ends_with_the_same_bits(
    train, tmp_path: Path
) -> None:
    config = configuration(tmp_path)
    steps, expected = train(config, "whole", None)
    assert expected["epoch"] == 3
    stops = ["evaluating", "evaluating", 1, "evaluating", 0, 1, "evaluating"]
    told = []
    for stop in stops:
        done, stopped = train(config, "parts", stop)
        told.append((stopped["epoch"], stopped["batch"] == BATCHES, stopped["evaluated_epoch"]))
    assert done == steps
    assert told == [
        (0, True, 0), (0, True, 0), (1, False, 1), (1, True, 1), (2, False, 2), (2, False, 2), (2, True, 2),
    ]  # fmt: skip
    done, found = train(config, "parts", None)
    assert done == steps
    assert not differing(found, expected)
    best, expected_best = (
        load_file(tmp_path / run / "weights" / "best.safetensors") for run in ("parts", "whole")
    )
    assert all(value.equal(best[name]) for name, value in expected_best.items())
    assert epochs_of(tmp_path / "parts") == epochs_of(tmp_path / "whole")
    assert sum(entry["skipped_steps"] for entry in epochs_of(tmp_path / "whole")) > 0


def test_who_goes_on_from_an_older_checkpoint_goes_on_from_there(train, tmp_path: Path) -> None:
    """Not from those of the training that was left behind, which had more steps."""
    config = configuration(tmp_path)
    config = replace(config, train=replace(config.train, checkpoint_every=1, keep_checkpoints=9))
    steps, expected = train(config, "run", None)
    checkpoints = tmp_path / "run" / "checkpoints"
    first, *later = sorted(checkpoints.glob("step-*"))
    assert len(later) == 2
    done, stopped = train(config, "run", 1, str(first))
    assert stopped["step"] == done < steps
    assert sorted(checkpoints.glob("step-*")) == [first, checkpoints / f"step-{done:08d}"]
    done, found = train(config, "run", None)
    assert done == steps
    assert not differing(found, expected)


def test_adamw_goes_on_with_the_same_bits(train, tmp_path: Path) -> None:
    """Between the steps of the second epoch, and of the third."""
    config = configuration(tmp_path, "adamw", "fp32")
    _, expected = train(config, "whole", None)
    for steps, evaluated in ((5, 1), (2, 2)):
        _, stopped = train(config, "parts", steps)
        assert stopped["batch"] > 0
        assert (stopped["best_epoch"], stopped["evaluated_epoch"]) == (1, evaluated)
    _, found = train(config, "parts", None)
    assert not differing(found, expected)
    assert expected["epoch"] == 3
    assert {name.rpartition("/")[2] for name in expected if name.startswith("optimizer: ")} == {
        "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip
