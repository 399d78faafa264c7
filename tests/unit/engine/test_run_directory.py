"""A checkpoint is resumed by what it belongs to, and by nothing else."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from hvdyolo.config import Config, ModelConfig, OptimizerConfig
from hvdyolo.engine.checkpoint import TrainingState, save_checkpoint
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.run_directory import describe_network, read_matching_state, starts_afresh
from hvdyolo.models.description import read_description
from hvdyolo.settings import config_values, read_config
from hvdyolo.utils.errors import MismatchError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of the default configuration, trained on dataset ``d``."""
    return save(tmp_path, config_values(Config()))


def save(tmp_path: Path, config: dict[str, Any], network: dict[str, Any] | None = None) -> Path:
    model = nn.Conv2d(1, 1, 1)
    state = TrainingState(
        step=3, epoch=1, batch=2, best_ap=-1.0, ema_updates=3, dataset="d", config=config, network=network
    )
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


def edited(values: dict[str, Any], *path: Any) -> dict[str, Any]:
    """A copy of a description with the last of ``path`` at the place that the others lead to."""
    values = yaml.safe_load(yaml.safe_dump(values))
    place = values
    for key in path[:-2]:
        place = place[key]
    place[path[-2]] = path[-1]
    return values


EDITS = [
    (("width_multiple", 0.5), r"width_multiple: 0\.25 there, 0\.5 here"),
    # Of the same weights, which would be loaded and compute something else.
    (
        ("head", 3, 3, [512, True]),
        r"row 13: \[-1, 3, 'C3', \[512, False\]\] there, \[-1, 3, 'C3', \[512, True\]\]",
    ),
    (("anchors", 3), r"anchors: \[\[10, 13, .* there, 3 here"),
    (("backbone", 9, [-1, 1, "Conv", [1024]]), r"row 9: .*SPPF.* there, .*Conv.* here"),
    (("backbone", [[-1, 1, "Conv", [64]]]), r"rows of the backbone: 10 there, 1 here"),
]


@pytest.mark.parametrize(("edit", "says"), EDITS)
def test_a_description_that_was_edited_is_another_network(tmp_path: Path, edit: Any, says: str) -> None:
    file = tmp_path / "network.yaml"
    values = read_description("yolov5n")
    file.write_text(yaml.safe_dump({"nc": 80, **values}))
    config = Config(model=ModelConfig(description=str(file)))
    checkpoint = save(tmp_path, config_values(config), describe_network(config))
    # Comments, flow and the number of classes, which is the data's, are not the network.
    file.write_text("# mine\n" + yaml.safe_dump({**values, "nc": 3}, default_flow_style=True))
    assert read_matching_state(checkpoint, config, "d").step == 3
    file.write_text(yaml.safe_dump(edited(values, *edit)))
    with pytest.raises(MismatchError, match=rf"than .*network\.yaml now describes \({says}") as caught:
        read_matching_state(checkpoint, config, "d")
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_does_not_tell_its_network_goes_on_and_tells_it_from_then_on(
    checkpoint: Path,
) -> None:
    assert read_matching_state(checkpoint, Config(), "d").network == describe_network(Config())


def test_a_run_starts_afresh_where_nothing_could_be_resumed(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".step-00000003.building").mkdir(parents=True)
    assert starts_afresh(run, "auto")
    assert starts_afresh(run, "never")
    assert not starts_afresh(run, str(checkpoint))
    (run / "checkpoints" / "step-00000003").mkdir()
    assert not starts_afresh(run, "auto")
