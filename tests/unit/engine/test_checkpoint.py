"""Checkpoints are whole or absent, prove their content and bring everything back."""

import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.checkpoint import (
    TrainingState,
    latest_checkpoint,
    load_tensors,
    read_state,
    save_checkpoint,
    verify_checkpoint,
)
from hvdyolo.engine.early_stopping import BestScore
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.lars import Lars
from hvdyolo.engine.optimizer import apply_rates, build_optimizer
from hvdyolo.engine.schedule import StepRange, TrainingSchedule
from hvdyolo.utils.errors import DataError, MismatchError, StorageError

Name = Literal["sgd", "adamw", "lars"]
SLOTS: dict[type, list[str]] = {
    SGD: ["momentum_buffer"],
    AdamW: ["step", "exp_avg", "exp_avg_sq"],
    Lars: ["momentum_buffer"],
}
each_optimizer = pytest.mark.parametrize("name", get_args(Name))


class Training:
    """A small model with an optimizer that has momentum and an average that differs from it."""

    def __init__(self, seed: int, steps: int = 3, name: Name = "sgd") -> None:
        torch.manual_seed(seed)
        self.model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.average = MovingAverage(self.model, 0.9, 10)
        self.schedule = TrainingSchedule(OptimizerConfig(name=name, nominal_batch=2), 1, 100, batch=2)
        self.optimizer = build_optimizer(self.model, self.schedule.resolved)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        apply_rates(self.optimizer, self.schedule.rates(StepRange(0, self.average.updates + 1, 1)))
        self.model(torch.rand(2, 3, 8, 8)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model)

    def tensors(self) -> list[torch.Tensor]:
        slots = [
            self.optimizer.state[parameter][slot]
            for parameter in self.model.parameters()
            for slot in SLOTS[type(self.optimizer)]
        ]
        return [
            tensor.clone()
            for tensor in (
                *self.model.state_dict().values(),
                *self.average.model.state_dict().values(),
                *slots,
            )
        ]

    def save(self, directory: Path, step: int, keep: int = 2) -> Path:
        return save_checkpoint(directory, state(step), self.model, self.average, self.optimizer, keep)


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step, epoch=1, batch=2, best_ap=0.25, ema_updates=3, dataset="d", config={"a.b": [1]}
    )


@each_optimizer
def test_everything_comes_back_bit_for_bit(tmp_path: Path, name: Name) -> None:
    saved = Training(seed=1, name=name)
    path = saved.save(tmp_path, 7)
    loaded = Training(seed=2, steps=0, name=name)
    load_tensors(path, loaded.model, loaded.average, loaded.optimizer)
    for one, other in zip(saved.tensors(), loaded.tensors(), strict=True):
        assert torch.equal(one, other)
    assert read_state(path) == state(7)


def test_patience_of_a_checkpoint_that_knows_no_epoch_of_its_best_is_counted_from_there(
    tmp_path: Path,
) -> None:
    path = Training(seed=1).save(tmp_path, 7)
    content = json.loads((path / "state.json").read_text())
    for newer in ("best_epoch", "evaluated_epoch", "anchors", "class_scores", "so_far"):
        del content[newer]
    (path / "state.json").write_text(json.dumps({**content, "epoch": 30}))
    best = read_state(path).best_score
    assert best == BestScore(ap=0.25, epoch=30, evaluated=30)
    assert not best.after(0.2, 39).exhausts(10)
    assert best.after(0.2, 40).exhausts(10)


@each_optimizer
def test_a_loaded_optimizer_goes_on_as_the_saved_one(tmp_path: Path, name: Name) -> None:
    saved = Training(seed=1, name=name)
    path = saved.save(tmp_path, 7)
    loaded = Training(seed=2, steps=0, name=name)
    load_tensors(path, loaded.model, loaded.average, loaded.optimizer)
    loaded.average.updates = saved.average.updates
    for training in (saved, loaded):
        torch.manual_seed(5)
        training.step()
        training.step()
    for one, other in zip(saved.tensors(), loaded.tensors(), strict=True):
        assert torch.equal(one, other)


def test_what_is_frozen_has_no_state_and_needs_none(tmp_path: Path) -> None:
    frozen = []
    for seed, steps in ((1, 3), (2, 0)):
        training = Training(seed, steps=0)
        training.model[0].requires_grad_(False)
        training.optimizer = build_optimizer(training.model, training.schedule.resolved)
        for _ in range(steps):
            training.step()
        frozen.append(training)
    saved, loaded = frozen
    load_tensors(saved.save(tmp_path, 7), loaded.model, loaded.average, loaded.optimizer)
    names = {name for name, value in loaded.model.named_parameters() if value in loaded.optimizer.state}
    assert names == {"1.weight", "1.bias", "2.weight", "2.bias"}
    kept, found = (training.optimizer.state[training.model[2].weight] for training in frozen)
    assert torch.equal(kept["momentum_buffer"], found["momentum_buffer"])


def test_the_newest_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    training = Training(seed=1)
    for step in (1, 2, 10):
        training.save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000002",
        "step-00000010",
    ]
    assert (tmp_path / "LATEST").read_text() == "step-00000010\n"
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000010"


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*"))


def test_what_was_trained_after_an_older_checkpoint_goes_once_training_went_on_from_that(
    tmp_path: Path,
) -> None:
    training = Training(seed=1)
    for step in (1000, 2000, 3000):
        training.save(tmp_path, step, keep=3)
    training.save(tmp_path, 1100, keep=3)
    assert steps(tmp_path) == [1000, 1100]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00001100"
    training.save(tmp_path, 1200, keep=1)
    assert steps(tmp_path) == [1200]


def test_latest_decides_and_where_it_names_nothing_the_newest(tmp_path: Path) -> None:
    training = Training(seed=1)
    one, two = training.save(tmp_path, 1), training.save(tmp_path, 2)
    (tmp_path / "LATEST").write_text("step-00000001\n")
    assert latest_checkpoint(tmp_path) == one
    for content in ("step-00000009\n", "", "../elsewhere\n"):
        (tmp_path / "LATEST").write_text(content)
        assert latest_checkpoint(tmp_path) == two
    (tmp_path / "LATEST").unlink()
    assert latest_checkpoint(tmp_path) == two


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_process_that_dies_as_it_saves_a_step_again_leaves_that_step(
    tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(seed=1)
    training.save(tmp_path, 12, keep=1)
    really_rename, done = os.rename, 0

    def rename(source: Path, target: Path) -> None:
        nonlocal done
        if done == renames:
            raise KeyboardInterrupt
        really_rename(source, target)
        done += 1

    with monkeypatch.context() as patch:
        patch.setattr("hvdyolo.engine.checkpoint.os.rename", rename)
        patch.setattr("hvdyolo.engine.checkpoint.write_atomically", lambda *_: rename(tmp_path, tmp_path))
        with pytest.raises(KeyboardInterrupt):
            training.save(tmp_path, 12, keep=1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert read_state(found) == state(12)
    training.save(tmp_path, 12, keep=1)
    assert steps(tmp_path) == [12]


def test_an_interrupted_write_is_invisible(tmp_path: Path) -> None:
    training = Training(seed=1)
    whole = training.save(tmp_path, 1)
    building = tmp_path / ".step-00000002.building"
    building.mkdir()
    (building / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == whole
    training.save(tmp_path, 2)  # and is no obstacle to doing it again
    assert not building.exists()


def test_every_flipped_byte_is_noticed_and_the_older_one_is_taken(tmp_path: Path) -> None:
    training = Training(seed=1)
    older, newer = training.save(tmp_path, 1), training.save(tmp_path, 2)
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        raw = bytearray((newer / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (newer / name).write_bytes(raw)
        with pytest.raises(DataError, match=name):
            verify_checkpoint(newer)
        assert latest_checkpoint(tmp_path) == older
        raw[len(raw) // 2] ^= 1
        (newer / name).write_bytes(raw)
    verify_checkpoint(newer)
    (newer / "MANIFEST.json").unlink()
    assert latest_checkpoint(tmp_path) == older


def test_when_none_verifies_that_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    path = Training(seed=1).save(tmp_path, 1)
    (path / "model.safetensors").unlink()
    with pytest.raises(DataError, match="missing or damaged"):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / "none") is None


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = Training(seed=1).save(tmp_path, 1)
    values = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(MismatchError, match="format 99"):
        read_state(path)


def test_a_state_without_a_scaler_is_of_a_run_without_one(tmp_path: Path) -> None:
    path = Training(seed=1).save(tmp_path, 1)
    values = json.loads((path / "state.json").read_text())
    del values["scaler"]  # written before there was one
    (path / "state.json").write_text(json.dumps(values))
    assert read_state(path) == state(1)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*bytes free"):
        Training(seed=1).save(tmp_path / "file", 1)
