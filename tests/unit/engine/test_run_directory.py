"""A checkpoint is resumed by what it belongs to, and by nothing else."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hvdyolo.config import Config, OptimizerConfig
from hvdyolo.engine.checkpoint import TrainingState, save_checkpoint
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.run_directory import read_matching_state
from hvdyolo.settings import config_values, read_config
from hvdyolo.utils.errors import MismatchError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of the default configuration, trained on dataset ``d``."""
    return save(tmp_path, config_values(Config()))


def save(tmp_path: Path, config: dict[str, Any]) -> Path:
    model = nn.Conv2d(1, 1, 1)
    state = TrainingState(step=3, epoch=1, batch=2, best_ap=-1.0, ema_updates=3, dataset="d", config=config)
    optimizer = build_optimizer(model, OptimizerConfig())
    return save_checkpoint(tmp_path, state, model, MovingAverage(model, 0.9, 10), optimizer, keep=1)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--loader.workers", "7", "--train.log_every", "3"],
        ["--loader.damaged", "skip", "--loader.stage", "/dev/shm"],
    ],
)
def test_settings_that_change_nothing_learnt_may_change(checkpoint: Path, words: list[str]) -> None:
    assert read_matching_state(checkpoint, read_config(None, words), "d").batch == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--loader.order", "block"], "loader.order: 'exact' there, 'block' here"),
        (["--train.seed", "1"], "train.seed: 0 there, 1 here"),
    ],
)
def test_another_order_or_seed_is_another_run(checkpoint: Path, words: list[str], says: str) -> None:
    with pytest.raises(MismatchError, match=says):
        read_matching_state(checkpoint, read_config(None, words), "d")


def test_other_data_is_another_run(checkpoint: Path) -> None:
    with pytest.raises(MismatchError, match="dataset d and --data is dataset e"):
        read_matching_state(checkpoint, Config(), "e")


def test_a_setting_that_came_later_was_at_its_default(tmp_path: Path) -> None:
    old = config_values(Config())
    del old["train.precision"]
    checkpoint = save(tmp_path, old)
    assert read_matching_state(checkpoint, Config(), "d").step == 3
    with pytest.raises(MismatchError, match=r"precision: 'fp32' there, 'bf16' here"):
        read_matching_state(checkpoint, read_config(None, ["--train.precision", "bf16"]), "d")
