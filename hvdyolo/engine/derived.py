"""What follows from the settings, the data and the launch: told, and kept beside the settings of a run."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from hvdyolo.config import Config, OptimizerConfig
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.job import Job
from hvdyolo.engine.journal import LOGGER
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.models.build import DetectionModel
from hvdyolo.ops.compiled import compiled
from hvdyolo.settings import config_as_yaml
from hvdyolo.utils.files import write_atomically, write_json


def of_data(training: PackedSplit) -> dict[str, Any]:
    """From the dataset."""
    return {"dataset": training.dataset_id, "classes": list(training.names), "samples": len(training)}


def of_launch(job: Job, workers: int, colours: str, keeps_memory: bool) -> dict[str, Any]:
    """From how the job was started.

    Args:
        workers: of the loader on each rank.
        colours: where they are changed.
        keeps_memory: that tensors have left.
    """
    functions = compiled("batch_norm_silu")
    return {
        "ranks": job.comm.world.size,
        "device": str(job.device),
        "cores": job.cores,
        "binding": "lifted" if job.unbound else "as launched",
        "threads": job.threads,
        "workers": workers,
        "colours": colours,
        "freed_memory": "kept" if keeps_memory else "as the system has it",
        "compiled_functions": "none" if functions is None else functions.processor,
        "communication": dict(job.comm.settings),
    }


def of_model(
    model: DetectionModel, weights: dict[str, Any] | None, anchors: dict[str, Any] | None
) -> dict[str, Any]:
    """From the network, what it took from other weights and what was found of its anchors."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "weights": weights,
        "anchors": {"pixels": model.anchors_pixels.tolist(), **(anchors or {})},
    }


def of_steps(schedule: TrainingSchedule, sizes: InputSizes, class_weights: Tensor | None) -> dict[str, Any]:
    """From the schedule, and what its steps learn with."""
    return {
        "batches_per_epoch": schedule.batches,
        "accumulation": schedule.accumulation,
        "images_per_step": schedule.batch * schedule.accumulation,
        "input_sizes": sizes.choices,
        "warmup_batches": schedule.warmup_batches,
        "optimizer": asdict(schedule.resolved),
        "class_weights": None if class_weights is None else class_weights.tolist(),
    }


def record(run: Path, config: Config, derived: dict[str, Any]) -> None:
    """Write ``config.yaml`` and ``derived.json``, and tell what matters most."""
    write_atomically(run / "config.yaml", config_as_yaml(config))
    write_json(run / "derived.json", derived)
    LOGGER.info(
        "%s, %d parameters; %d images of %d classes; %d ranks x %d threads and %d loader workers on %s; %s",
        config.model.description, derived["parameters"], derived["samples"], len(derived["classes"]),
        derived["ranks"], derived["threads"], derived["workers"], derived["device"],
        " ".join(f"{name}={value}" for name, value in derived["communication"].items()) or "one process",
    )  # fmt: skip
    optimizer = derived["optimizer"]
    LOGGER.info(
        "%s, %d images a step: lr %g, weight decay %g, gradients clipped to %g, warm-up of %d batches",
        optimizer["name"], derived["images_per_step"], optimizer["lr"], optimizer["weight_decay"],
        optimizer["clip_norm"], derived["warmup_batches"],
    )  # fmt: skip
    if derived["binding"] == "lifted":
        LOGGER.info("mpirun had bound each rank to fewer cores, unasked; that was lifted (--bind-to none)")
    for doubt in doubts(config, derived):
        LOGGER.warning("%s", doubt)


def doubts(config: Config, derived: dict[str, Any]) -> Iterator[str]:
    """What is allowed, and was probably not meant."""
    settings = config.optimizer
    batches = config.train.epochs * derived["batches_per_epoch"]
    if derived["warmup_batches"] >= batches:
        yield (
            f"the warm-up of {derived['warmup_batches']} batches does not end within the {batches} of this "
            "run; lower optimizer.warmup_min_batches or warmup_epochs, or train longer"
        )
    if config.train.batch > derived["samples"]:
        yield (
            f"train.batch is {config.train.batch}, and there are {derived['samples']} images to train on: "
            "the rest of each batch is empty, and rates are those of a full one; lower it"
        )
    if config.model.freeze and config.model.weights is None:
        yield f"model.freeze '{config.model.freeze}' holds random values fixed; give model.weights too"
    if settings.name == "adamw" and settings.lr == OptimizerConfig().lr:
        yield (
            f"adamw with optimizer.lr {settings.lr:g} and weight_decay {settings.weight_decay:g}: the "
            "defaults are for sgd, and 0.001 and 0.05 suit adamw (docs/training.md)"
        )
