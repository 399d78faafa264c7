"""Checkpoints are whole or absent, prove their content and bring everything back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvdyolo.engine.checkpoint import (
    TrainingState,
    latest_checkpoint,
    load_tensors,
    read_state,
    save_checkpoint,
    verify_checkpoint,
)
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.utils.errors import DataError, MismatchError, StorageError


class Training:
    """A small model with an optimizer that has momentum and an average that differs from it."""

    def __init__(self, seed: int, steps: int = 3) -> None:
        torch.manual_seed(seed)
        self.model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.average = MovingAverage(self.model, 0.9, 10)
        self.optimizer = build_optimizer(self.model, 0.1, 0.9, 1e-4)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.model(torch.rand(2, 3, 8, 8)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model)

    def tensors(self) -> list[torch.Tensor]:
        momenta = [
            self.optimizer.state[parameter]["momentum_buffer"] for parameter in self.model.parameters()
        ]
        return [
            tensor.clone()
            for tensor in (
                *self.model.state_dict().values(),
                *self.average.model.state_dict().values(),
                *momenta,
            )
        ]

    def save(self, directory: Path, step: int, keep: int = 2) -> Path:
        return save_checkpoint(directory, state(step), self.model, self.average, self.optimizer, keep)


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step, epoch=1, batch=2, best_ap=0.25, ema_updates=3, dataset="d", config={"a.b": [1]}
    )


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = Training(seed=1)
    path = saved.save(tmp_path, 7)
    loaded = Training(seed=2, steps=0)
    load_tensors(path, loaded.model, loaded.average, loaded.optimizer)
    for one, other in zip(saved.tensors(), loaded.tensors(), strict=True):
        assert torch.equal(one, other)
    assert read_state(path) == state(7)


def test_a_loaded_optimizer_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    saved = Training(seed=1)
    path = saved.save(tmp_path, 7)
    loaded = Training(seed=2, steps=0)
    load_tensors(path, loaded.model, loaded.average, loaded.optimizer)
    loaded.average.updates = saved.average.updates
    for training in (saved, loaded):
        torch.manual_seed(5)
        training.step()
    for one, other in zip(saved.tensors(), loaded.tensors(), strict=True):
        assert torch.equal(one, other)


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
