"""What a training learns from, and all that can be seen to be wrong before anything is built."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hvdyolo.config import Config, ModelConfig
from hvdyolo.data.loader import check_packages
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.staging import local_shards
from hvdyolo.engine.compilation import check_compilation
from hvdyolo.engine.image_weighting import check_image_weighting
from hvdyolo.engine.input_size import check_image_size
from hvdyolo.engine.job import Job
from hvdyolo.engine.run_directory import starts_afresh
from hvdyolo.engine.training_parts import build_plan, build_schedule
from hvdyolo.engine.transfer import freeze, read_lr_factors
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.class_weights import class_weights
from hvdyolo.utils.errors import UsageError


@dataclass(frozen=True)
class Inputs:
    """What is learnt from, opened and checked but for the images, which are checked as they are read."""

    training: PackedSplit
    validation: PackedSplit
    plan: BatchPlan


def check(config: Config, data: Path, stage: str | None, job: Job) -> Inputs:
    """Everything that can be wrong and is cheap to see, before anything is built; then shards are staged.

    Raises:
        UsageError: the configuration does not fit the data, the model or the number of ranks.
        DataError: the packed data is damaged.
        StorageError: it does not fit into ``stage``.
    """
    size = job.comm.world.size
    manifest = read_manifest(data)
    for split in ("train", "val"):
        if split not in manifest.splits:
            raise UsageError(
                f"{data} has no split '{split}' (it has {', '.join(manifest.splits)}); pack one."
            )
    if size > config.train.batch:
        raise UsageError(
            f"train.batch is {config.train.batch}, too few for {size} ranks, for each needs an image: "
            "raise it or start fewer ranks."
        )
    with torch.device("meta"):
        model = build_model(config.model.description, len(manifest.names))
    check_image_size("loader.image_size", config.loader.image_size, model)
    if config.evaluation.image_size is not None:
        check_image_size("evaluation.image_size", config.evaluation.image_size, model)
    check_parts(config, model)
    check_packages(config.augment)
    several_sizes = config.augment.multi_scale > 0
    check_compilation(config.train, job.device, several_sizes=several_sizes)
    outlines = config.augment.copy_paste > 0
    outlined = ("train",) if outlines else ()
    shards = local_shards(data, ("train", "val"), stage, lambda: job.beacon.beat("stage", 0), outlined)
    training = PackedSplit(data, "train", verify=config.loader.verify, shards=shards, outlines=outlines)
    validation = PackedSplit(data, "val", verify=config.loader.verify, shards=shards)
    plan = build_plan(config, len(training))
    check_image_weighting(config, build_schedule(config, plan), copied_ahead=job.device.type == "cuda")
    return Inputs(training, validation, plan)


def check_weights(model: ModelConfig, run: Path, resume: str) -> None:
    """Raise a :class:`UsageError` if the file of weights to start from is missing.

    A run that goes on has them in its checkpoint: a requeued job does not need what it has begun with.
    """
    if model.weights is not None and starts_afresh(run, resume) and not Path(model.weights).is_file():
        raise UsageError(f"model.weights: there is no file {model.weights}.")


def check_parts(config: Config, model: DetectionModel) -> None:
    """Raise a :class:`UsageError` unless settings name parts and classes that the model has."""
    try:
        key = "model.freeze"
        freeze(model, config.model.freeze or "")
        key = "optimizer.lr_factors"
        read_lr_factors(model, config.optimizer.lr_factors or "")
        key = "loss.class_weights"
        class_weights(config.loss.class_weights, np.ones(len(model.names), dtype=np.int64))
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None
