"""The command ``hvdyolo train`` for real: on one rank and several, stopped, resumed, and misused."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.models.build import build_model, load_model, save_model

pytestmark = pytest.mark.slow

# A few seconds of training: 64 pixels, two epochs.
SMALL = [
    "--loader.image_size", "64", "--loader.workers", "1", "--train.batch", "8", "--train.epochs", "2",
    "--optimizer.nominal_batch", "16", "--train.log_every", "1", "--distributed.cycle_time", "1",
]  # fmt: skip


def words(data: Path, run: Path, *more: object) -> list[object]:
    return ["train", "--config", "demo", "--data", data, "--run", run, *SMALL, *more]


def outcome(run: Path) -> dict[str, Any]:
    return json.loads((run / "outcome.json").read_text())


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["kind"] == kind]


def wait_for(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("launcher", "ranks"), [("single", 1), ("mpirun", 2), ("horovodrun", 2), ("gloo", 2)]
)
def test_a_run_leaves_all_that_the_design_promises(launch, synthetic, tmp_path, launcher, ranks) -> None:
    run = tmp_path / "run"
    ended = launch(words(synthetic, run), launcher, ranks)
    assert ended.code == 0, ended.output
    assert outcome(run) | {"exit_code": 0, "reason": "done", "attempt": 1} == outcome(run)
    assert outcome(run)["step"] == metrics(run, "step")[-1]["step"] > 0
    assert [entry["epoch"] for entry in metrics(run, "epoch")] == [0, 1]
    assert 0 <= metrics(run, "epoch")[-1]["ap"] <= 1
    assert all(0 <= entry["wait_percent"] <= 100 for entry in metrics(run, "epoch") + metrics(run, "step"))
    logs = {path.name for path in (run / "logs").glob("rank-*.log")}
    assert logs == {f"rank-{rank:04d}.log" for rank in range(ranks)}
    for name in ("config.yaml", "derived.json", "results.csv"):
        assert (run / name).stat().st_size > 0
    assert not (run / "lock").exists()
    assert (run / "weights" / "last.safetensors").exists()
    assert (run / "checkpoints" / "LATEST").read_text().strip() in {
        path.name for path in (run / "checkpoints").glob("step-*")
    }
    assert json.loads((run / "derived.json").read_text())["ranks"] == ranks


def test_all_augmentations_and_all_of_the_loss_train_on_two_ranks_that_share_batch_norm(
    launch, synthetic, tmp_path
) -> None:
    run = tmp_path / "run"
    strong = {
        "mosaic": 0.8, "mosaic_9": 0.5, "degrees": 10, "shear": 5, "perspective": 0.2, "mixup": 0.5,
        "autoaugment": "v1", "cutout": 0.5, "flip_up_down": 0.5, "multi_scale": 0.5,
    }  # fmt: skip
    settings = [word for key, value in strong.items() for word in (f"--augment.{key}", value)]
    # A batch of 8 is four times the nominal one, so that the rule for large batches is at work.
    settings += [
        "--config", "high", "--optimizer.name", "lars", "--optimizer.nominal_batch", "2",
        "--train.sync_batch_norm", "true", "--distributed.compression", "fp16",
        "--loss.focal_gamma", "1.5", "--loss.class_weights", "inverse_sqrt",
    ]  # fmt: skip
    ended = launch(words(synthetic, run, *settings), "mpirun", 2)
    assert ended.code == 0, ended.output
    derived = json.loads((run / "derived.json").read_text())
    assert derived["input_sizes"] == [32, 64, 96]
    assert derived["optimizer"]["clip_norm"] == 40
    assert derived["optimizer"]["trust_coefficient"] == 0.2
    assert sum(derived["class_weights"]) == pytest.approx(4, rel=1e-6)
    assert "lars, 8 images a step: lr 0.01, weight decay 0.002, gradients clipped to 40" in ended.output
    assert load_model(run / "weights" / "last.safetensors").names == read_manifest(synthetic).names
    terms = ("box", "objectness", "classification")
    losses = [entry[term] for entry in metrics(run, "epoch") for term in terms]
    assert all(0 < loss < 100 for loss in losses), losses


def test_a_stopped_run_is_resumed_by_the_same_command_on_other_ranks(launch, synthetic, tmp_path) -> None:
    run = tmp_path / "run"
    # With AdamW, whose state is counts and averages, some on the CPU wherever the network is.
    more = ["--train.epochs", "4", "--train.eval_every", "4", "--optimizer.name", "adamw"]
    process = launch.start(words(synthetic, run, *more), "mpirun", 2)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(metrics(run, "step")) >= 3)
    process.send_signal(signal.SIGUSR1)
    stopped = launch.wait(process)
    assert outcome(run)["exit_code"] == 75, stopped.output
    assert outcome(run)["reason"] == "preempted"
    assert "Traceback" not in stopped.output
    step = outcome(run)["step"]
    assert (run / "checkpoints" / f"step-{step:08d}").is_dir()

    ended = launch(words(synthetic, run, *more), "single")
    assert ended.code == 0, ended.output
    assert f"step-{step:08d}" in ended.output
    assert outcome(run)["attempt"] == 2
    steps = [entry["step"] for entry in metrics(run, "step")]
    assert steps == list(range(1, steps[-1] + 1))  # each once, none missing


def test_resuming_gives_the_bits_of_the_run_that_was_not_stopped(launch, synthetic, tmp_path) -> None:
    one_thread = ["--distributed.threads", "1", "--train.epochs", "3", "--train.eval_every", "3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(words(synthetic, whole, *one_thread)).code == 0
    process = launch.start(words(synthetic, parts, *one_thread))
    wait_for(lambda: (parts / "metrics.jsonl").exists() and len(metrics(parts, "step")) >= 3)
    process.send_signal(signal.SIGUSR1)
    assert launch.wait(process).code == 75
    assert launch(words(synthetic, parts, *one_thread)).code == 0
    name = (whole / "checkpoints" / "LATEST").read_text().strip()
    for file in ("model", "ema", "optimizer"):
        expected = load_file(whole / "checkpoints" / name / f"{file}.safetensors")
        found = load_file(parts / "checkpoints" / name / f"{file}.safetensors")
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert tensor.equal(found[key]), f"{file}: {key}"


def test_other_weights_with_a_frozen_backbone(launch, synthetic, tmp_path) -> None:
    """Weights of other classes; two ranks, whose statistics of frozen norms must not be touched either."""
    run, weights = tmp_path / "run", tmp_path / "start.safetensors"
    torch.manual_seed(5)
    start = build_model("yolov5n", 7)
    for name, value in start.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    save_model(start, weights)
    more = ["--model.weights", weights, "--model.freeze", "backbone, 10", "--optimizer.lr_factors", "head=2"]
    ended = launch(words(synthetic, run, *more), "mpirun", 2)
    assert ended.code == 0, ended.output
    assert "took 343 of 349 tensors from" in ended.output
    assert "not model.24.m.0.weight: (36, 64, 1, 1) there, (27, 64, 1, 1) here" in ended.output
    derived = json.loads((run / "derived.json").read_text())
    assert (derived["weights"]["taken"], derived["weights"]["total"]) == (343, 349)
    frozen = tuple(f"model.{row}." for row in range(11))
    sizes = {name: value.numel() for name, value in start.named_parameters() if name.startswith(frozen)}
    assert derived["frozen_parameters"] == sum(sizes.values())
    last = load_file(run / "weights" / "last.safetensors")
    name = (run / "checkpoints" / "LATEST").read_text().strip()
    for found in (last, load_file(run / "checkpoints" / name / "model.safetensors")):
        for key, value in start.state_dict().items():
            if key.startswith(frozen):
                assert value.equal(found[key]), key
    assert not last["model.13.cv1.conv.weight"].equal(start.state_dict()["model.13.cv1.conv.weight"])
    assert not last["model.13.cv1.bn.running_mean"].equal(start.state_dict()["model.13.cv1.bn.running_mean"])
    weights.unlink()  # a requeued job needs it no more: its checkpoint has all
    again = launch(words(synthetic, run, *more))
    assert again.code == 0, again.output
    assert json.loads((run / "derived.json").read_text())["weights"] == derived["weights"]
    assert launch(words(synthetic, run)).code == 78


def test_other_settings_other_data_and_never_are_refused(launch, synthetic, packed_bccd, tmp_path) -> None:
    run = tmp_path / "run"
    assert launch(words(synthetic, run)).code == 0
    checkpoint = (run / "checkpoints" / "LATEST").read_text()
    weights = (run / "weights" / "last.safetensors").read_bytes()
    reached = outcome(run)["step"], outcome(run)["epoch"]
    again = launch(words(synthetic, run))
    assert (again.code, "all epochs are done" in again.output) == (0, True), again.output
    assert outcome(run)["attempt"] == 2
    assert (run / "weights" / "last.safetensors").read_bytes() == weights
    assert (outcome(run)["step"], outcome(run)["epoch"]) == reached
    dry = launch(words(synthetic, run, "--optimizer.lr", "0.5", "--dry-run"))
    assert (dry.code, "optimizer.lr: 0.1 there, 0.5 here" in dry.output) == (78, True)
    other = launch(words(synthetic, run, "--optimizer.lr", "0.5"))
    assert (other.code, "optimizer.lr: 0.1 there, 0.5 here" in other.output) == (78, True)
    data = launch(words(packed_bccd, run))
    assert (data.code, "dataset" in data.output) == (78, True), data.output
    never = launch(words(synthetic, run, "--resume", "never"))
    assert (never.code, "already holds checkpoints" in never.output) == (78, True)
    assert (run / "checkpoints" / "LATEST").read_text() == checkpoint
    for ended in (other, data, never):
        assert "Traceback" not in ended.output


MISTAKES = [
    (["--optimizer.lrr", "1"], 2, "did you mean 'optimizer.lr'?"),
    (["--data", "/nowhere"], 2, "/nowhere"),
    (["--config", "dem"], 2, "did you mean 'demo'?"),
    (["--train.batch", "1"], 2, "train.batch is 1, too few for 2 ranks"),
    (["--loader.image_size", "100"], 2, "multiple of 32"),
    (["--augment.copy_paste", "0.5"], 2, "was packed without --polygons"),
    (["--model.description", "yolov5q"], 2, "yolov5q"),
    (["--model.weights", "/nowhere.safetensors"], 2, "/nowhere.safetensors"),
    (["--model.freeze", "spine"], 2, "model.freeze: 'spine' selects no parameter"),
    (["--resume", "/nowhere"], 2, "/nowhere"),
    (["--optimizer.lr_factors", "neck=0"], 2, "optimizer.lr_factors: 'neck=0'"),
    (["--loss.class_weights", "1, 2"], 2, "loss.class_weights: '1, 2' is neither"),
]


@pytest.mark.parametrize(
    ("launcher", "change", "code", "says"),
    # The checks are the same; that they are told once by several ranks does not depend on which it is.
    [("single" if number % 3 else "mpirun", *mistake) for number, mistake in enumerate(MISTAKES)],
)
def test_a_mistake_is_one_sentence_once_and_an_exit_code(
    launch, synthetic, tmp_path, launcher, change, code, says
) -> None:
    ended = launch(words(synthetic, tmp_path / "run", *change), launcher, 2)
    assert ended.code == code, ended.output
    told = [line for line in ended.output.splitlines() if line.startswith("hvdyolo")]
    assert len(told) == 1, ended.output
    assert says in told[0]
    assert "Traceback" not in ended.output


def test_a_run_directory_that_cannot_be_made_is_exit_74(launch, synthetic, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    ended = launch(words(synthetic, tmp_path / "file" / "run"), "mpirun", 2)
    assert ended.code == 74, ended.output
    assert "cannot write" in ended.output
    assert "Traceback" not in ended.output


def test_a_damaged_sample_ends_all_ranks_and_is_named(launch, synthetic, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    shard = next(data.glob("train-*.h5"))
    raw = bytearray(shard.read_bytes())
    middle = len(raw) // 2  # inside /data, which is nearly all of the file
    raw[middle : middle + 4] = bytes(4)
    shard.write_bytes(raw)
    run = tmp_path / "run"
    ended = launch(words(data, run), "mpirun", 2)
    assert ended.code == 65, ended.output
    assert shard.name in ended.output
    assert "Traceback" not in ended.output
    assert outcome(run)["reason"] == "data"


def test_skipped_samples_are_named_once_and_counted_over_ranks(launch, synthetic, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    split = PackedSplit(data, "train")
    damaged = [5, 20, 33]
    shard = data / split.shard_file(0)
    raw = bytearray(shard.read_bytes())
    for sample in damaged:
        encoded = split.read(sample)
        raw[raw.find(encoded) + len(encoded) // 2] ^= 1
    shard.write_bytes(raw)
    run = tmp_path / "run"
    # Without mosaics every sample is looked at once an epoch, and by one rank.
    ended = launch(words(data, run, "--loader.damaged", "skip", "--augment.mosaic", "0"), "mpirun", 2)
    assert ended.code == 0, ended.output
    assert [entry["skipped_samples"] for entry in metrics(run, "epoch")] == [3, 3]
    steps = [entry["step"] for entry in metrics(run, "step")]
    assert steps == list(range(1, outcome(run)["step"] + 1))
    assert "epoch 1: 3 damaged samples were skipped" in ended.output
    told = []
    for log in (run / "logs").glob("rank-*.log"):
        lines = [line for line in log.read_text().splitlines() if "skipped: " in line]
        names = [name for name in map(split.describe, damaged) if any(name in line for line in lines)]
        assert len(names) == len(lines), "a rank told of a sample twice, or of another"
        told += names
    assert set(told) == set(map(split.describe, damaged))


@pytest.mark.parametrize("command", ["train", "eval"])
def test_damage_outside_the_images_is_told_once_before_anything_begins(
    launch, synthetic, tmp_path, command
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(synthetic, data)
    (shard,) = read_manifest(data).splits["val"].shards
    path = data / shard.file
    raw = bytearray(path.read_bytes())
    raw[shard.columns.labels + 30] ^= 1
    path.write_bytes(raw)
    if command == "train":
        line = words(data, run)
    else:
        weights = tmp_path / "weights.safetensors"
        save_model(build_model("yolov5n", 4, names=read_manifest(data).names), weights)
        line = ["eval", "--weights", weights, "--data", data]
    ended = launch(line, "mpirun", 2)
    assert ended.code == 65, ended.output
    told = [line for line in ended.output.splitlines() if line.startswith("hvdyolo")]
    assert len(told) == 1, ended.output
    assert f"{path.name} is damaged" in told[0]
    assert not run.exists()


def test_a_dry_run_prints_the_settings_and_leaves_nothing(launch, synthetic, tmp_path) -> None:
    run = tmp_path / "run"
    ended = launch(words(synthetic, run, "--dry-run"))
    assert ended.code == 0, ended.output
    assert "image_size: 64" in ended.output
    assert not run.exists()


def test_two_jobs_cannot_share_a_run(launch, synthetic, tmp_path) -> None:
    run = tmp_path / "run"
    first = launch.start(words(synthetic, run, "--train.epochs", "50"))
    wait_for(lambda: (run / "lock").exists())
    second = launch(words(synthetic, run, "--train.epochs", "50"))
    first.send_signal(signal.SIGUSR1)
    ended = launch.wait(first)
    assert (second.code, str(first.pid) in second.output) == (78, True), second.output
    assert ended.code in (0, 75), ended.output
