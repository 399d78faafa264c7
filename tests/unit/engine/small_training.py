"""Whole runs of a tiny network in this process, through all that ``hvdyolo train`` builds."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from tiny_network import describe

from hvdyolo.config import (
    AugmentConfig,
    Config,
    EvaluationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine import trainer, training
from hvdyolo.engine.attempt import Attempt
from hvdyolo.engine.evaluator import evaluate
from hvdyolo.engine.feed import Report, StepFeed, UpcomingStep
from hvdyolo.engine.job import Job
from hvdyolo.engine.precision import Precision
from hvdyolo.metrics.average_precision import CocoScores
from hvdyolo.utils.errors import Preempted

NETWORK = describe(anchors=[[5, 6, 10, 11, 18, 17]])

EPOCHS = 4
BATCHES = 5  # an epoch, of 8 images each; accumulation ramps from 1 to 3 over the first epoch and a half


class Request:
    """In place of signals."""

    requested = False


def stopping_before(step: int | None) -> type[StepFeed]:
    """A feed that asks for a stop before so many steps of an attempt."""

    class Feed(StepFeed):
        asked = 0

        def next(self, report: Report) -> UpcomingStep:
            self.asked += 1
            return super().next(replace(report, stop=self.asked - 1 == step))

    return Feed


@contextmanager
def one_thread_job() -> Iterator[Job]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    beacon = Beacon()
    yield Job(SingleProcess(), torch.device("cpu"), beacon, cores=1, threads=1)
    beacon.close()
    torch.set_num_threads(threads)


def configuration(
    folder: Path, optimizer: Literal["sgd", "adamw"] = "sgd", precision: Precision = "fp16"
) -> Config:
    """With this seed the first epoch's AP stays the best, and patience ends training after the third."""
    network = folder / "network.yaml"
    network.write_text(NETWORK)
    return Config(
        model=ModelConfig(description=str(network)),
        loader=LoaderConfig(image_size=64, workers=0),
        augment=AugmentConfig(mosaic=0.5, mixup=0.5, multi_scale=0.5),
        optimizer=OptimizerConfig(optimizer, nominal_batch=24, warmup_epochs=1.5, warmup_min_batches=0),
        train=TrainConfig(epochs=EPOCHS, batch=8, patience=2, precision=precision, seed=1),
        # Untrained, it is sure of nothing: by default nothing would be found, and every AP be 0.
        evaluation=EvaluationConfig(batch=32, confidence=1e-5, max_boxes=100),
    )


def attempt(
    config: Config,
    data: Path,
    run: Path,
    job: Job,
    stop: int | Literal["evaluating"] | None,
    monkeypatch: Any,
    resume: str = "auto",
) -> int:
    """Train until the end, until before step ``stop`` of this attempt or into its first evaluation.

    Returns the steps done.
    """
    run.mkdir(exist_ok=True)
    request = Request()

    def asked(*arguments: Any) -> CocoScores:
        request.requested = stop == "evaluating"
        return evaluate(*arguments)

    monkeypatch.setattr(training, "StopRequest", lambda: request)
    monkeypatch.setattr(training, "StepFeed", stopping_before(None if stop == "evaluating" else stop))
    monkeypatch.setattr(trainer, "evaluate", asked)
    this = Attempt(1)
    try:
        training.train_attempt(config, training.check(config, data, None, job), run, resume, job, this)
    except Preempted:
        assert stop is not None
    return this.step


def saved(run: Path) -> dict[str, Any]:
    """Every tensor of the newest checkpoint, and its state."""
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    content: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    for file in ("model", "ema", "optimizer"):
        tensors = load_file(checkpoint / f"{file}.safetensors")
        content |= {f"{file}: {name}": value.numpy().tobytes() for name, value in tensors.items()}
    return content
