"""``hvdyolo train``: checks, construction of the trainer, and the run around it."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hvdyolo.config import Config
from hvdyolo.data.loader import TrainLoader, check_packages
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.staging import local_shards
from hvdyolo.data.worker_count import with_workers
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.device import check_devices
from hvdyolo.distributed.sync_batch_norm import convert_sync_batch_norm
from hvdyolo.engine.agreement import on_every_rank, on_first_rank
from hvdyolo.engine.attempt import Attempt, begin_attempt
from hvdyolo.engine.auto_anchor import AnchorCheck, check_anchors
from hvdyolo.engine.checkpoint import TrainingState, load_tensors
from hvdyolo.engine.compilation import check_compilation, compile_network
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import CellCounts, StepFeed
from hvdyolo.engine.image_weighting import Evaluations, ImageWeighting, check_image_weighting
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.job import Job, open_job
from hvdyolo.engine.journal import LOGGER, Journal
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.precision import gradient_scaler
from hvdyolo.engine.preemption import StopRequest
from hvdyolo.engine.run_directory import choose_checkpoint, read_matching_state
from hvdyolo.engine.schedule import StepRange, TrainingSchedule
from hvdyolo.engine.trainer import Trainer
from hvdyolo.engine.transfer import Transfer, freeze, read_lr_factors, transfer_weights
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.assign import Assigner
from hvdyolo.objective.class_weights import class_weights
from hvdyolo.settings import config_as_yaml, config_values
from hvdyolo.utils.errors import UsageError
from hvdyolo.utils.files import make_directory, write_atomically, write_json
from hvdyolo.utils.freed_memory import keep_freed_memory


def train(config: Config, data: Path, run: Path, resume: str, dry_run: bool) -> None:
    """Train on the packed dataset ``data`` and leave everything in ``run``.

    Raises:
        HvdyoloError: as its subclasses say; raised before any rank trains if it can be known then.
    """
    with open_job(config) as job:
        check_devices(job.comm, job.device)
        stage = None if dry_run else config.loader.stage
        inputs = on_every_rank(job.comm, "check", lambda: check(config, data, stage, job))
        if dry_run:
            on_first_rank(
                job.comm, "run directory", lambda: _starting_state(config, run, resume, inputs.training)
            )
            if job.comm.world.rank == 0:
                print(config_as_yaml(config), end="")
            return
        on_every_rank(job.comm, "run directory", lambda: make_directory(run))
        with begin_attempt(job, run, config.watchdog) as attempt:
            train_attempt(config, inputs, run, resume, job, attempt)


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
    if config.model.weights is not None and not Path(config.model.weights).is_file():
        raise UsageError(f"model.weights: there is no file {config.model.weights}.")
    check_parts(config, model)
    check_packages(config.augment)
    check_compilation(config.train, job.device, several_sizes=config.augment.multi_scale > 0)
    outlines = config.augment.copy_paste > 0
    outlined = ("train",) if outlines else ()
    shards = local_shards(data, ("train", "val"), stage, lambda: job.beacon.beat("stage", 0), outlined)
    training = PackedSplit(data, "train", verify=config.loader.verify, shards=shards, outlines=outlines)
    validation = PackedSplit(data, "val", verify=config.loader.verify, shards=shards)
    plan = build_plan(config, len(training))
    check_image_weighting(config, build_schedule(config, plan))
    return Inputs(training, validation, plan)


def build_plan(config: Config, samples: int) -> BatchPlan:
    """Which of so many samples are in which batch."""
    return BatchPlan(
        samples=samples,
        batch=config.train.batch,
        seed=config.train.seed,
        order=config.loader.order,
        partners=config.augment.partners,
    )


def build_schedule(config: Config, plan: BatchPlan) -> TrainingSchedule:
    """When the optimizer steps, and with which rates."""
    return TrainingSchedule(config.optimizer, config.train.epochs, plan.batches_per_epoch, config.train.batch)


def check_image_size(key: str, size: int, model: DetectionModel) -> None:
    """Raise a :class:`UsageError` unless ``size`` is a multiple of the model's largest stride."""
    stride = model.size_multiple
    if size % stride:
        nearest = max(round(size / stride), 1) * stride
        raise UsageError(f"{key} must be a multiple of {stride}, not {size}; {nearest} is nearest.")


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


def train_attempt(config: Config, inputs: Inputs, run: Path, resume: str, job: Job, attempt: Attempt) -> None:
    """Build the trainer, from a checkpoint if there is one, and run it."""
    comm, device, beacon = job.comm, job.device, job.beacon
    keeps_memory = device.type == "cpu" and keep_freed_memory(os.environ)
    training, plan = inputs.training, inputs.plan
    loading = with_workers(config.loader, job.cores)
    stop = StopRequest()
    beacon.beat("build", 0)
    schedule = build_schedule(config, plan)
    state = on_first_rank(comm, "choose checkpoint", lambda: _starting_state(config, run, resume, training))
    epochs = state.epochs(config)
    attempt.step, attempt.epoch = state.training.step, min(state.training.epoch, epochs - 1)
    model, transfer = _build_model(config, training, comm)
    if state.checkpoint is None:
        state = state.noting(anchors=check_anchors(config, model, transfer, training, comm))
    model.to(device)
    average = MovingAverage(model, schedule.resolved.ema_decay, schedule.resolved.ema_ramp)
    factors = read_lr_factors(model, config.optimizer.lr_factors or "")
    optimizer = build_optimizer(model, schedule.resolved, factors)
    setting = config.loss.class_weights
    weights = None if setting is None else class_weights(setting, training.class_counts())
    if state.checkpoint is not None:
        path = state.checkpoint
        on_every_rank(comm, "load", lambda: load_tensors(path, model, average, optimizer))
        average.updates = state.training.ema_updates
        done = state.training.epoch == config.train.epochs
        LOGGER.info("resumed from %s%s", path, ": all epochs are done" if done else "")
    else:
        LOGGER.info("no checkpoint to resume from: begins with the first epoch")
    comm.broadcast_state(model)
    comm.broadcast_state(average.model)
    scaler = gradient_scaler(config.train.precision, device, config.distributed.compression)
    if state.training.scaler:
        scaler.load_state_dict(state.training.scaler)
    if config.train.sync_batch_norm:
        norms = convert_sync_batch_norm(model, comm)
        LOGGER.info("batch norm over all ranks: %d sums a batch, each a cycle of Horovod or more", 2 * norms)
    input_sizes = build_input_sizes(config, schedule, model)
    if config.train.compile:
        compile_network(model, config.train, several_sizes=len(input_sizes.choices) > 1)
    learner = Learner(
        model=model,
        average=average,
        optimizer=optimizer,
        reduction=comm.reduce_gradients(optimizer, model),
        schedule=schedule,
        loss=config.loss,
        clip_norm=schedule.resolved.clip_norm,
        device=device,
        beacon=beacon,
        precision=config.train.precision,
        class_weights=None if weights is None else weights.to(device),
        scaler=scaler,
        unrecorded=config.train.cuda_graphs and not config.train.compile,
        step=state.training.step,
    )
    weighting = on_every_rank(
        comm, "image weights", lambda: build_image_weighting(config, training, state.training.class_scores)
    )
    loader = TrainLoader(
        training,
        plan,
        loading,
        config.augment,
        build_assigner(model, config.loss.anchor_threshold),
        rank=comm.world.rank,
        size=comm.world.size,
        epochs=epochs,
        start_epoch=state.training.epoch,
        start_batch=state.training.batch,
        input_size=input_sizes.at,
        draw=None if weighting is None else weighting.draw,
    )
    journal = Journal(run, state.training.step) if comm.world.rank == 0 else None
    try:
        _record_derived(
            config,
            run,
            job,
            schedule,
            model,
            transfer,
            state.training,
            training,
            loader.workers,
            input_sizes,
            weights,
            keeps_memory,
        )
        trainer = Trainer(
            replace(config, loader=loading),
            run,
            comm,
            learner,
            StepFeed(
                iter(loader),
                _step_ranges(schedule, state.training, epochs),
                comm,
                count_cells(model, len(plan.slots(comm.world.rank, comm.world.size))),
            ),
            inputs.validation,
            weighting,
            state.training,
            journal,
            beacon,
            stop,
            attempt,
        )
        trainer.run()
    finally:
        loader.close()
        if journal is not None:
            journal.close()


def build_assigner(model: DetectionModel, threshold: float) -> Assigner:
    """The assignment that loader workers compute for ``model``."""
    return Assigner(model.strides, model.anchors_pixels.cpu().numpy(), threshold)


def count_cells(model: DetectionModel, images: int) -> CellCounts:
    """The cells of ``model`` in batches of ``images``."""
    return CellCounts(images, anchors=model.anchors_pixels.shape[1], strides=model.strides)


def build_input_sizes(config: Config, schedule: TrainingSchedule, model: DetectionModel) -> InputSizes:
    """The sizes of the network's inputs, one an optimizer step."""
    return InputSizes(
        schedule,
        config.train.seed,
        config.loader.image_size,
        model.size_multiple,
        config.augment.multi_scale,
    )


def build_image_weighting(
    config: Config, training: PackedSplit, evaluations: Evaluations = ()
) -> ImageWeighting | None:
    """What draws the images, if it is not the plan."""
    return ImageWeighting(training, config.train.seed, evaluations) if config.train.image_weighting else None


@dataclass(frozen=True)
class _Start:
    """Where training starts: the state, and the checkpoint its tensors come from, if any."""

    training: TrainingState
    checkpoint: Path | None

    def noting(self, anchors: AnchorCheck | None) -> "_Start":
        """With what has been found of the anchors."""
        found = None if anchors is None else asdict(anchors)
        return replace(self, training=replace(self.training, anchors=found))

    def epochs(self, config: Config) -> int:
        """Epochs to train in all: a run that has stopped early has none left."""
        stopped = self.training.best_score.exhausts(config.train.patience)
        return self.training.epoch if stopped else config.train.epochs


def _starting_state(config: Config, run: Path, resume: str, training: PackedSplit) -> _Start:
    checkpoint = choose_checkpoint(run, resume)
    if checkpoint is not None:
        return _Start(read_matching_state(checkpoint, config, training.dataset_id), checkpoint)
    fresh = TrainingState(
        step=0,
        epoch=0,
        batch=0,
        best_ap=-1.0,
        ema_updates=0,
        dataset=training.dataset_id,
        config=config_values(config),
    )
    return _Start(fresh, None)


def _build_model(
    config: Config, training: PackedSplit, comm: Communicator
) -> tuple[DetectionModel, Transfer | None]:
    """The model that starts to learn, and what it has from ``model.weights``."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model.description, len(training.names), names=training.names)
    model.image_size = config.loader.image_size
    model.data_digest = training.dataset_id
    transfer = None
    if config.model.weights is not None:
        weights = Path(config.model.weights)
        transfer = on_every_rank(comm, "weights", lambda: transfer_weights(weights, model))
        LOGGER.info("took %d of %d tensors from %s", transfer.taken, transfer.total, weights)
        for name, reason in transfer.left.items():
            LOGGER.info("  not %s: %s", name, reason)
    freeze(model, config.model.freeze or "")
    return model, transfer


def _step_ranges(schedule: TrainingSchedule, state: TrainingState, epochs: int) -> Iterator[StepRange]:
    for epoch in range(state.epoch, epochs):
        yield from schedule.steps(epoch, state.batch if epoch == state.epoch else 0)


def _record_derived(
    config: Config,
    run: Path,
    job: Job,
    schedule: TrainingSchedule,
    model: DetectionModel,
    transfer: Transfer | None,
    state: TrainingState,
    training: PackedSplit,
    workers: int,
    input_sizes: InputSizes,
    weights: Tensor | None,
    keeps_memory: bool,
) -> None:
    """Write and tell what follows from the settings, the data and the launch."""
    if job.comm.world.rank != 0:
        return
    derived = {
        "dataset": training.dataset_id,
        "classes": list(training.names),
        "samples": len(training),
        "ranks": job.comm.world.size,
        "device": str(job.device),
        "cores": job.cores,
        "binding": "lifted" if job.unbound else "as launched",
        "threads": job.threads,
        "workers": workers,
        "freed_memory": "kept" if keeps_memory else "as the system has it",
        "communication": dict(job.comm.settings),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "weights": None if transfer is None else asdict(transfer),
        "anchors": {"pixels": model.anchors_pixels.tolist(), **(state.anchors or {})},
        "batches_per_epoch": schedule.batches,
        "accumulation": schedule.accumulation,
        "input_sizes": input_sizes.choices,
        "warmup_batches": schedule.warmup_batches,
        "optimizer": asdict(schedule.resolved),
        "class_weights": None if weights is None else weights.tolist(),
    }
    write_atomically(run / "config.yaml", config_as_yaml(config))
    write_json(run / "derived.json", derived)
    LOGGER.info(
        "%s, %d parameters; %d images of %d classes; %d ranks x %d threads and %d loader workers on %s; %s",
        config.model.description, derived["parameters"], len(training), len(training.names),
        job.comm.world.size, job.threads, workers, job.device,
        " ".join(f"{name}={value}" for name, value in job.comm.settings.items()) or "one process",
    )  # fmt: skip
    optimizer = schedule.resolved
    LOGGER.info(
        "%s, %d images a step: lr %g, weight decay %g, gradients clipped to %g, warm-up of %d batches",
        optimizer.name, schedule.batch * schedule.accumulation, optimizer.lr, optimizer.weight_decay,
        optimizer.clip_norm, schedule.warmup_batches,
    )  # fmt: skip
    if job.unbound:
        LOGGER.info("mpirun had bound each rank to fewer cores, unasked; that was lifted (--bind-to none)")
