"""The record of a run survives kills and says nothing twice after a resume."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_training import attempt, configuration, one_thread_job

from hvdyolo.engine.journal import Journal
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import BIAS


def entries(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_entry_has_step_epoch_and_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 0)
    journal.record("step", 10, 0, {"box": 0.5})
    journal.record("epoch", 12, 0, {"ap": 0.25, "lr": 0.01})
    journal.close()
    assert [entry["kind"] for entry in entries(tmp_path)] == ["step", "epoch"]
    assert all({"step", "epoch", "time"} <= entry.keys() for entry in entries(tmp_path))
    with open(tmp_path / "results.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["step"], row["ap"], row["ap75"]) for row in rows] == [("12", "0.25", "")]


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 0)
    journal.record("step", 1, 0, {"box": float("nan"), "objectness": float("-inf"), "class": 0.5})
    journal.close()
    (entry,) = entries(tmp_path)
    assert [entry[name] for name in ("box", "objectness", "class")] == [None, None, 0.5]


def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 0)
    for step in (10, 20, 30):
        journal.record("epoch", step, step // 10, {})
    journal.close()
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"kind": "step", "st')  # a kill in the middle of a line
    resumed = Journal(tmp_path, 20, 3)
    resumed.record("epoch", 30, 3, {"ap": 0.5})
    resumed.close()
    assert [entry["step"] for entry in entries(tmp_path)] == [10, 20, 30]
    with open(tmp_path / "results.csv") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["10", "20", "30"]


def test_an_epoch_that_is_evaluated_again_is_told_once(tmp_path: Path) -> None:
    """Who stopped in its evaluation, evaluated, told and was killed before the next checkpoint."""
    journal = Journal(tmp_path, 0, 0)
    for epoch in (0, 1):
        journal.record("step", 10 * epoch + 10, epoch, {})
        journal.record("epoch", 10 * epoch + 10, epoch, {"ap": 0.25})
    journal.close()
    resumed = Journal(tmp_path, 20, 1)
    resumed.record("epoch", 20, 1, {"ap": 0.5})
    resumed.close()
    told = [(entry["kind"], entry["step"], entry["epoch"]) for entry in entries(tmp_path)]
    assert told == [("step", 10, 0), ("epoch", 10, 0), ("step", 20, 1), ("epoch", 20, 1)]
    assert entries(tmp_path)[-1]["ap"] == 0.5


def test_losses_and_rates_are_those_of_the_steps_that_they_are_said_to_be_of(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = configuration(tmp_path, precision="fp32"), tmp_path / "run"
    config = replace(config, train=replace(config.train, log_every=1))
    train_step, found, rates = Learner.train_step, {}, {}

    def noted(learner: Learner, *arguments: Any) -> Any:
        losses = train_step(learner, *arguments)
        found[learner.step] = losses.tolist()
        rates[learner.step] = {g["lr"] for g in learner.optimizer.param_groups if g["name"] != BIAS}
        return losses

    monkeypatch.setattr(Learner, "train_step", noted)
    with one_thread_job() as job:
        done = attempt(config, synthetic, run, job, 4, monkeypatch)
        assert done == 4
        attempt(config, synthetic, run, job, 4, monkeypatch)
    steps = [entry for entry in entries(run) if entry["kind"] == "step"]
    assert [entry["losses_of_step"] for entry in steps] == [None, None, 1, 2, None, None, 5, 6]
    for entry in steps:
        losses = [entry.get(term) for term in ("box", "objectness", "classification")]
        expected = found.get(entry["losses_of_step"], [None] * 3)
        assert losses == pytest.approx(expected, abs=1e-6)
    told = [(entry["lr"], rates[entry["step"]]) for entry in entries(run)]
    assert all({lr} == used for lr, used in told)
    assert len({lr for lr, _ in told}) > 4, "a rate that stands still shows nothing"
    assert {entry["kind"] for entry in entries(run)} == {"step", "epoch"}
