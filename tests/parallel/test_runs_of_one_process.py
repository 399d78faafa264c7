"""A whole training and a whole evaluation on all ranks, against the same by one process without Horovod."""

import json
from pathlib import Path

import pytest
import torch
from rehearsal import assert_close
from safetensors.torch import load_file
from tiny_network import describe
from torch import Tensor

from hvdyolo.config import (
    AugmentConfig,
    Config,
    EvaluationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.attempt import Attempt
from hvdyolo.engine.checkpoint import TrainingState, latest_checkpoint, read_state
from hvdyolo.engine.evaluator import evaluate
from hvdyolo.engine.job import Job
from hvdyolo.engine.training import train_attempt
from hvdyolo.engine.training_inputs import check
from hvdyolo.metrics.average_precision import CocoScores
from hvdyolo.models.build import build_model

NETWORK = describe(anchors=[[5, 6, 10, 11, 18, 17]])

# Untrained, a network is sure of nothing: by default nothing would be found, and every AP be 0.
UNSURE = {"confidence": 1e-5, "max_boxes": 100}


@pytest.fixture
def network(tmp_path) -> Path:
    path = tmp_path / "network.yaml"
    path.write_text(NETWORK)
    return path


def trained(comm: Communicator, data: Path, network: Path, run: Path) -> None:
    """Two epochs of 40 images in steps of two batches of 12; the last batch has 4 and is filled up."""
    config = Config(
        model=ModelConfig(description=str(network), auto_anchor=False),
        loader=LoaderConfig(image_size=64, workers=0),
        augment=AugmentConfig(mosaic=0.5, mixup=0.5, multi_scale=0.5),
        optimizer=OptimizerConfig(nominal_batch=24, warmup_epochs=1.0, warmup_min_batches=0),
        train=TrainConfig(epochs=2, batch=12, sync_batch_norm=True, eval_every=2, log_every=1),
        evaluation=EvaluationConfig(**UNSURE),
    )
    beacon = Beacon()
    job = Job(comm, torch.device("cpu"), beacon, cores=1, threads=1)
    train_attempt(config, check(config, data, None, job), run, "never", job, Attempt(1))
    beacon.close()


def saved(run: Path) -> tuple[TrainingState, dict[str, Tensor], list[dict[str, float]]]:
    """State, floating-point tensors and journal."""
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    tensors = {
        f"{file} {name}": value
        for file in ("model", "ema", "optimizer")
        for name, value in load_file(checkpoint / f"{file}.safetensors").items()
    }
    journal = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return read_state(checkpoint), tensors, journal


def test_ranks_learn_what_one_process_learns(comm, synthetic, network, tmp_path) -> None:
    run = comm.broadcast_object("run", tmp_path) / "ranks"
    data = comm.broadcast_object("data", synthetic)
    if comm.world.rank == 0:
        run.mkdir()
    comm.barrier("run")
    trained(comm, data, network, run)
    if comm.world.rank > 0:
        return
    alone = tmp_path / "alone"
    alone.mkdir()
    trained(SingleProcess(), data, network, alone)
    (state, tensors, journal), (found, found_tensors, found_journal) = saved(alone), saved(run)
    assert (found.step, found.epoch, found.ema_updates) == (state.step, state.epoch, state.ema_updates)
    assert_close(tensors, found_tensors, tolerance=1e-4)
    name = "model.0.conv.weight"  # something was learnt: the average lags behind
    assert not tensors[f"model {name}"].equal(tensors[f"ema {name}"])
    for expected, line in zip(journal, found_journal, strict=True):
        assert line.keys() == expected.keys()
        # Only the first two steps have no losses to tell yet.
        assert ("box" in line) == (line.get("losses_of_step", line["step"]) is not None)
        assert ("box" in line) or line["step"] <= 2
        for key in {"step", "epoch", "lr", "box", "objectness", "classification"} & line.keys():
            assert line[key] == pytest.approx(expected[key], rel=1e-4), (key, line)


@pytest.mark.parametrize("rectangular", [False, True])
def test_ranks_find_the_average_precision_of_one_process(comm, synthetic, network, rectangular: bool) -> None:
    """Each score to its last bit. Batches of five, so that ranks have different numbers of them."""
    split = PackedSplit(synthetic, "val")
    torch.manual_seed(1)
    model = build_model(network, len(split.names), names=split.names)
    model.image_size = 64
    settings = EvaluationConfig(batch=5, rectangular=rectangular, **UNSURE)
    beacon = Beacon()

    def scores(communicator: Communicator) -> CocoScores:
        loading, cpu = LoaderConfig(workers=0), torch.device("cpu")
        return evaluate(model, split, communicator, cpu, settings, loading, beacon)

    alone = comm.broadcast_object("alone", scores(SingleProcess()) if comm.world.rank == 0 else None)
    together = scores(comm)
    beacon.close()
    assert alone.ap > 0
    assert together == alone
