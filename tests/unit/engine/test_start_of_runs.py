"""What a run starts from, and what is refused before anything is built."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import attempt, configuration, one_thread_job, saved

from hvdyolo.cli import main
from hvdyolo.config import Config
from hvdyolo.engine.derived import doubts
from hvdyolo.engine.training_inputs import check_weights
from hvdyolo.models.build import build_model, save_model
from hvdyolo.settings import read_config
from hvdyolo.utils.errors import UsageError


def test_a_run_goes_on_without_the_file_it_began_with(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, weights = configuration(tmp_path), tmp_path / "run", tmp_path / "start.safetensors"
    torch.manual_seed(5)
    start = build_model(config.model.description, 7)
    save_model(start, weights)
    config = replace(config, model=replace(config.model, weights=str(weights), freeze="backbone"))
    with one_thread_job() as job:
        check_weights(config.model, run, "auto")
        attempt(config, synthetic, run, job, 1, monkeypatch)
        first = json.loads((run / "derived.json").read_text())["weights"]
        weights.unlink()
        check_weights(config.model, run, "auto")
        assert attempt(config, synthetic, run, job, 1, monkeypatch) == 2
    assert 0 < first["taken"] < first["total"]
    assert json.loads((run / "derived.json").read_text())["weights"] == first
    frozen = start.state_dict()["model.0.conv.weight"].numpy().tobytes()
    assert saved(run)["model: model.0.conv.weight"] == frozen
    with pytest.raises(UsageError, match=r"model\.weights: there is no file .*start"):
        check_weights(config.model, tmp_path / "other", "auto")


@pytest.mark.parametrize(
    ("description", "code", "told"),
    [("yolov5n", 2, "No tensor of"), ("own", 2, "model.freeze would hold"), (None, 65, "start.safetensors")],
)
def test_weights_that_are_of_no_use_are_refused_without_a_run(
    synthetic: Path,
    tmp_path: Path,
    description: str | None,
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, weights, run = (
        configuration(tmp_path).model.description,
        tmp_path / "start.safetensors",
        tmp_path / "run",
    )
    if description is None:
        weights.write_bytes(b"no weights")
    else:
        save_model(build_model(own if description == "own" else description, 7), weights)
    line = ["train", "--config", "demo", "--data", synthetic, "--run", run, "--loader.image_size", 64]
    line += ["--model.description", own, "--model.weights", weights, "--model.freeze", "0,head"]
    for more in (["--dry-run"], []):
        assert main([*map(str, line), *more]) == code
        (words,) = capsys.readouterr().err.splitlines()
        assert told in words
    assert not run.exists()


def told(*words: str, warmup_batches: int = 99) -> list[str]:
    config = read_config(None, ["--train.epochs", "20", *words])
    derived = {"samples": 300, "batches_per_epoch": 5, "warmup_batches": warmup_batches}
    return list(doubts(config, derived))


def test_a_batch_beyond_the_split_is_told() -> None:
    assert told("--train.batch", "300") == []
    (doubt,) = told("--train.batch", "301")
    assert "train.batch is 301, and there are 300 images to train on" in doubt


def test_a_warmup_that_takes_the_whole_run_is_told() -> None:
    assert told() == []
    (doubt,) = told(warmup_batches=100)
    assert "warm-up of 100 batches does not end within the 100 of this run" in doubt


def test_random_values_that_are_held_fixed_are_told() -> None:
    (doubt,) = told("--model.freeze", "backbone")
    assert "model.freeze 'backbone' holds random values fixed; give model.weights too" in doubt
    assert told("--model.freeze", "backbone", "--model.weights", "some.safetensors") == []


def test_adamw_at_the_rate_of_sgd_is_told() -> None:
    (doubt,) = told("--optimizer.name", "adamw")
    assert "0.001 and 0.05 suit adamw" in doubt
    assert told("--optimizer.name", "adamw", "--optimizer.lr", "0.001") == []
    assert told("--optimizer.name", "lars") == []
    assert Config().optimizer.lr == 0.01
