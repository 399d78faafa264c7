"""Whole trainings of a tiny network, with scores that are given: what ranks must decide alike."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_network import describe

from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine import auto_anchor, evaluator, trainer
from hvdyolo.engine.attempt import Attempt
from hvdyolo.engine.checkpoint import latest_checkpoint, read_state
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.job import Job
from hvdyolo.engine.training import train_attempt
from hvdyolo.engine.training_inputs import check
from hvdyolo.metrics.average_precision import CocoScores
from hvdyolo.models.build import load_model
from hvdyolo.settings import read_config
from hvdyolo.utils.errors import InternalError, Preempted

NETWORK = describe(anchors=2)

SETTINGS = {
    "loader.image_size": 32, "loader.workers": 0, "augment.mosaic": 0, "optimizer.nominal_batch": 40,
    "train.batch": 40, "train.epochs": 7, "train.log_every": 100, "train.keep_checkpoints": 10,
}  # fmt: skip


def scored(ap: float, names: Sequence[str]) -> CocoScores:
    """The first class is found as well as that, the second half as well, and so on."""
    classes = {name: {"ap": ap / number} for number, name in enumerate(names, 1)}
    return CocoScores(ap, ap, ap, ap, ap, ap, images=1, instances=1, classes=classes)


@pytest.fixture
def job(comm) -> Iterator[Job]:
    beacon = Beacon()
    yield Job(comm, torch.device("cpu"), beacon, cores=1, threads=1)
    beacon.close()


@dataclass
class Training:
    """One command on all ranks."""

    job: Job
    data: Path
    folder: Path

    def __call__(self, run: str, resume: str = "auto", **settings: object) -> Attempt:
        description = self.folder / "network.yaml"
        if self.job.comm.world.rank == 0:
            description.write_text(NETWORK)
            (self.folder / run).mkdir(exist_ok=True)
        values = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        values["model.description"] = description
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        self.job.comm.barrier("description")
        config = read_config(None, words)
        attempt = Attempt(1)
        inputs = check(config, self.data, None, self.job)
        train_attempt(config, inputs, self.folder / run, resume, self.job, attempt)
        return attempt


@pytest.fixture
def training(job, synthetic, tmp_path) -> Training:
    """In one folder of all ranks."""
    return Training(job, synthetic, job.comm.broadcast_object("folder", tmp_path))


@pytest.fixture
def give_scores(monkeypatch) -> Callable[[Sequence[float]], None]:
    """Let the evaluations to come have these scores."""

    def give(scores: Sequence[float]) -> None:
        coming = iter(scores)
        monkeypatch.setattr(trainer, "evaluate", lambda model, split, *_: scored(next(coming), split.names))

    return give


def test_ranks_stop_early_together_and_resume_with_the_same_anchors_and_patience(
    comm, training, give_scores, monkeypatch
) -> None:
    if comm.world.size > 2:
        pytest.skip("two ranks show it")
    scores = [0.1, 0.3, 0.2, 0.25, 0.9, 0.9, 0.9]
    give_scores(scores)
    attempt = training("whole", train__patience=2)
    assert comm.gather_objects("stopped", attempt.epoch) == [3] * comm.world.size
    assert attempt.detail == "stopped early after epoch 4: no better AP since epoch 2 (0.300)"
    checkpoint = latest_checkpoint(training.folder / "whole" / "checkpoints")
    state = read_state(checkpoint)
    assert (state.epoch, state.best_epoch, state.evaluated_epoch) == (4, 2, 4)
    assert (training.folder / "whole" / "weights" / "last.safetensors").exists()

    # From the checkpoint of the third epoch, in which patience had begun to run out.
    monkeypatch.setattr(auto_anchor, "fit_anchors", None)  # what is fitted once is in the checkpoint
    give_scores(scores[3:])
    third = training.folder / "whole" / "checkpoints" / f"step-{state.step // 4 * 3:08d}"
    assert read_state(third).epoch == 3
    resumed = training("resumed", str(third), train__patience=2, train__checkpoint_every=100)
    assert (resumed.epoch, resumed.step) == (3, state.step)
    assert resumed.detail == attempt.detail
    last = latest_checkpoint(training.folder / "resumed" / "checkpoints")  # stopping makes one
    assert read_state(last) == replace(state, config=read_state(last).config)
    assert (last / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()

    anchors = json.loads((training.folder / "whole" / "derived.json").read_text())["anchors"]
    assert anchors["fitted"]
    assert read_state(checkpoint).anchors == {key: anchors[key] for key in anchors if key != "pixels"}
    weights = load_model(training.folder / "whole" / "weights" / "last.safetensors")
    assert weights.anchors_pixels.tolist() == anchors["pixels"]
    assert [[x for wh in level for x in wh] for level in anchors["pixels"]] == weights.description["anchors"]
    # Neither read again nor lost, in a resumed run.
    assert json.loads((training.folder / "resumed" / "derived.json").read_text())["anchors"] == anchors

    # The same command again has nothing to do, and says why. More patience goes on.
    give_scores([])
    again = training("whole", train__patience=2)
    assert (again.epoch, again.step, again.detail) == (3, state.step, attempt.detail)
    give_scores(scores[4:])
    longer = training("whole", train__patience=3)
    assert (longer.epoch, longer.detail) == (6, "")


def test_a_stop_that_one_rank_is_asked_for_while_all_evaluate_stops_all(comm, training, monkeypatch) -> None:
    """Who goes on evaluates first, and has lost nothing of what there is to tell of the epoch."""
    settings = {"train__epochs": 1, "train__batch": 8, "evaluation__batch": 1}
    scored_images, batches = evaluator._scored_images, []

    def asked(*arguments):
        batches.append(arguments)
        if comm.world.rank == comm.world.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return scored_images(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "_scored_images", asked)
        with pytest.raises(Preempted, match="Stopped on request at step 5; the same command resumes"):
            training("asked", **settings)
    # The last rank left after its first batch, the others when they were through with their own.
    looked = comm.gather_objects("looked", len(batches))
    assert looked.pop() == 1
    assert all(number > 1 for number in looked)
    checkpoints = training.folder / "asked" / "checkpoints"
    state = read_state(latest_checkpoint(checkpoints))
    assert (state.step, state.epoch, state.batch, state.evaluated_epoch) == (5, 0, 5, 0)
    assert not (training.folder / "asked" / "weights").exists()
    comm.barrier("looked")
    training("asked", **settings)
    training("unasked", **settings)
    after, expected = (
        read_state(latest_checkpoint(training.folder / run / "checkpoints")) for run in ("asked", "unasked")
    )
    assert after == expected
    entries = [
        json.loads(line)
        for run in ("asked", "unasked")
        for line in (training.folder / run / "metrics.jsonl").read_text().splitlines()
    ]
    for term in ("box", "objectness", "classification"):
        one, other = (entry[term] for entry in entries if entry["kind"] == "epoch")
        assert one == pytest.approx(other, rel=1e-5)
        assert one > 0


@pytest.mark.parametrize(("between", "updates"), [(1, 4), (50, 5)])
def test_a_moving_average_that_changes_on_one_rank_is_neither_scored_nor_saved(
    comm, training, give_scores, monkeypatch, between, updates
) -> None:
    """While it is learnt, and at the latest after the epoch, which here has five steps."""
    if comm.world.size == 1:
        pytest.skip("one rank agrees with itself")
    update, averages = MovingAverage.update, []

    def damaged(self, model) -> None:
        update(self, model)
        averages.append(self)
        if self.updates == 2 and comm.world.rank == 1:
            self.model.model[1].conv.weight[2, 1, 0, 1] *= 2

    monkeypatch.setattr(MovingAverage, "update", torch.no_grad()(damaged))
    monkeypatch.setattr(trainer, "_STEPS_BETWEEN_COMPARISONS", between)
    give_scores([])
    # At the published ramp an average forgets at once in its first steps, mistakes too.
    settings = {"train__batch": 8, "optimizer__nominal_batch": 8, "optimizer__ema_ramp": 1}
    with pytest.raises(
        InternalError, match=r"about the moving average of model\.1\.conv\.weight: rank 1 on "
    ):
        training(f"spoiled {between}", **settings)
    assert averages[-1].updates <= updates
    assert not [*training.folder.joinpath(f"spoiled {between}").rglob("*.safetensors")]


def test_images_drawn_by_weight_are_the_same_in_a_resumed_run(comm, training, give_scores) -> None:
    """Of each epoch the scores that count are one epoch old, and a checkpoint has those of two."""
    weighted = {"train__image_weighting": True, "train__epochs": 4, "train__batch": 8}
    scores = [0.9, 0.1, 0.8, 0.2]
    give_scores(scores)
    whole = training("weighted", optimizer__nominal_batch=8, **weighted)
    assert (whole.step, whole.epoch) == (4 * 5, 3)
    checkpoints = training.folder / "weighted" / "checkpoints"
    state = read_state(checkpoints / "step-00000010")
    assert [[epoch, scores[0]] for epoch, scores in state.class_scores] == [[1, 0.9], [2, 0.1]]

    give_scores(scores[2:])
    training(
        "goes on",
        str(checkpoints / "step-00000010"),
        optimizer__nominal_batch=8,
        loader__prefetch=1,
        **weighted,
    )
    # With another last score but one before the checkpoint, the last two epochs are others.
    path = checkpoints / "step-00000010" / "state.json"
    if comm.world.rank == 0:
        values = json.loads(path.read_text())
        values["class_scores"][0][1] = [0.0, 0.0, 0.0, 0.99]
        path.write_text(json.dumps(values))
        manifest = path.with_name("MANIFEST.json")
        digests = json.loads(manifest.read_text())
        digests["sha256"]["state.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(digests))
    comm.barrier("changed")
    give_scores(scores[2:])
    training("otherwise", str(checkpoints / "step-00000010"), optimizer__nominal_batch=8, **weighted)
    last = {
        run: load_file(training.folder / run / "checkpoints" / "step-00000020" / "model.safetensors")
        for run in ("weighted", "goes on", "otherwise")
    }
    weights = "model.3.m.0.weight"
    assert last["goes on"][weights].equal(last["weighted"][weights])
    assert not last["otherwise"][weights].equal(last["weighted"][weights])
