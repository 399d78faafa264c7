"""Which settings a resumed run may choose anew."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hvdyolo.config import Config
from hvdyolo.engine.checkpoint import TrainingState, save_checkpoint
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.run_directory import read_matching_state
from hvdyolo.settings import config_values
from hvdyolo.utils.errors import MismatchError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a run with the default settings on the dataset ``d``."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    state = TrainingState(
        step=1, epoch=0, batch=1, best_ap=0.0, ema_updates=1, dataset="d", config=config_values(Config())
    )
    average = MovingAverage(model, 0.9, 10)  # type: ignore[arg-type]
    return save_checkpoint(tmp_path, state, model, average, build_optimizer(model, 0.1, 0.9, 0.0), keep=2)


@pytest.mark.parametrize("change", [{"damaged": "skip"}, {"workers": 7}, {"verify": False}])
def test_what_does_not_change_what_is_learnt_is_free(checkpoint: Path, change: dict) -> None:
    config = Config()
    config = replace(config, loader=replace(config.loader, **change))
    assert read_matching_state(checkpoint, config, "d").step == 1


def test_what_changes_it_is_refused_and_named(checkpoint: Path) -> None:
    config = Config()
    config = replace(config, loader=replace(config.loader, image_size=320))
    with pytest.raises(MismatchError, match=r"loader\.image_size: 640 there, 320 here"):
        read_matching_state(checkpoint, config, "d")
