"""``hvdyolo train``: checks, construction of the trainer, and the run around it."""

import os
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.optim import Optimizer

from hvdyolo.config import Config, ModelConfig
from hvdyolo.data.loader import TrainLoader, with_colours
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.worker_count import with_workers
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.device import check_devices
from hvdyolo.distributed.sync_batch_norm import convert_sync_batch_norm
from hvdyolo.engine import derived
from hvdyolo.engine.agreement import on_every_rank, on_first_rank
from hvdyolo.engine.attempt import Attempt, begin_attempt
from hvdyolo.engine.auto_anchor import AnchorCheck, check_anchors
from hvdyolo.engine.checkpoint import TrainingState, load_tensors
from hvdyolo.engine.compilation import compile_network, record_network
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import StepFeed
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.job import Job, open_job
from hvdyolo.engine.journal import LOGGER, Journal
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.optimizer import build_optimizer
from hvdyolo.engine.precision import gradient_scaler
from hvdyolo.engine.preemption import StopRequest
from hvdyolo.engine.run_directory import (
    choose_checkpoint,
    describe_network,
    read_matching_state,
    starts_afresh,
)
from hvdyolo.engine.schedule import StepRange, TrainingSchedule
from hvdyolo.engine.trainer import Trainer
from hvdyolo.engine.training_inputs import Inputs, check, check_weights
from hvdyolo.engine.training_parts import (
    build_assigner,
    build_image_weighting,
    build_input_sizes,
    build_schedule,
    count_cells,
)
from hvdyolo.engine.transfer import Transfer, freeze, read_lr_factors, transfer_weights
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.class_weights import class_weights
from hvdyolo.settings import config_as_yaml, config_values
from hvdyolo.utils.files import make_directory
from hvdyolo.utils.freed_memory import keep_freed_memory


def train(config: Config, data: Path, run: Path, resume: str, dry_run: bool) -> None:
    """Train on the packed dataset ``data`` and leave everything in ``run``.

    Raises:
        HvdyoloError: as its subclasses say; raised before any rank trains if it can be known then.
    """
    with open_job(config) as job:
        check_devices(job.comm, job.device)
        on_first_rank(job.comm, "weights", lambda: check_weights(config.model, run, resume))
        stage = None if dry_run else config.loader.stage
        inputs = on_every_rank(job.comm, "check", lambda: check(config, data, stage, job))
        on_first_rank(job.comm, "weights", lambda: _try_weights(config, run, resume, inputs.training))
        if dry_run:
            on_first_rank(
                job.comm, "run directory", lambda: _find_start(config, run, resume, inputs.training)
            )
            if job.comm.world.rank == 0:
                print(config_as_yaml(config), end="")
            return
        on_every_rank(job.comm, "run directory", lambda: make_directory(run))
        with begin_attempt(job, run, config.watchdog) as attempt:
            train_attempt(config, inputs, run, resume, job, attempt)


def train_attempt(config: Config, inputs: Inputs, run: Path, resume: str, job: Job, attempt: Attempt) -> None:
    """Build the trainer, from a checkpoint if there is one, and run it."""
    comm, training = job.comm, inputs.training
    keeps_memory = job.device.type == "cpu" and keep_freed_memory(os.environ)
    stop = StopRequest()
    job.beacon.beat("build", 0)
    schedule = build_schedule(config, inputs.plan)
    start = on_first_rank(comm, "choose checkpoint", lambda: _find_start(config, run, resume, training))
    epochs = start.epochs(config)
    attempt.step, attempt.epoch = start.state.step, min(start.state.epoch, epochs - 1)
    model = _build_model(config, training)
    if start.checkpoint is None:
        transfer = _take_weights(config.model, model, comm)
        start = start.noting(transfer, check_anchors(config, model, transfer, training, comm))
    sizes = build_input_sizes(config, schedule, model)
    learner = _build_learner(config, training, model, schedule, sizes, start, job)
    slots = inputs.plan.slots(comm.world.rank, comm.world.size)
    if config.train.cuda_graphs and not config.train.compile:
        record_network(model, len(slots), config.loader.image_size, config.train.precision)
    state = start.state
    weighting = on_every_rank(
        comm, "image weights", lambda: build_image_weighting(config, training, state.class_scores)
    )
    loading = with_workers(config.loader, job.cores)
    augment = with_colours(config.augment, job.device)
    loader = TrainLoader(
        training,
        inputs.plan,
        loading,
        augment,
        build_assigner(model, config.loss.anchor_threshold),
        rank=comm.world.rank,
        size=comm.world.size,
        epochs=epochs,
        start_epoch=state.epoch,
        start_batch=state.batch,
        input_size=sizes.at,
        draw=None if weighting is None else weighting.draw,
        pinned=job.device.type == "cuda",
    )
    keeps_journal = comm.world.rank == 0
    with (
        loader,
        closing(Journal(run, state.step, state.epoch)) if keeps_journal else nullcontext() as journal,
    ):
        if journal is not None:
            values = (
                derived.of_data(training)
                | derived.of_launch(job, loader.workers, augment.colours, keeps_memory)
                | derived.of_model(model, state.weights, state.anchors)
                | derived.of_steps(schedule, sizes, learner.class_weights)
            )
            derived.record(run, config, values)
        feed = StepFeed(
            iter(loader), _step_ranges(schedule, state, epochs), comm, count_cells(model, len(slots))
        )
        Trainer(
            replace(config, loader=loading),
            run,
            comm,
            learner,
            feed,
            inputs.validation,
            weighting,
            state,
            journal,
            job.beacon,
            stop,
            attempt,
        ).run()


@dataclass(frozen=True)
class _Start:
    """Where training starts: the state, and the checkpoint its tensors come from, if any."""

    state: TrainingState
    checkpoint: Path | None

    def noting(self, transfer: Transfer | None, anchors: AnchorCheck | None) -> "_Start":
        """With what has been taken from other weights, and found of the anchors."""
        taken = None if transfer is None else asdict(transfer)
        found = None if anchors is None else asdict(anchors)
        return replace(self, state=replace(self.state, weights=taken, anchors=found))

    def epochs(self, config: Config) -> int:
        """Epochs to train in all: a run that has stopped early has none left."""
        stopped = self.state.best_score.exhausts(config.train.patience)
        return self.state.epoch if stopped else config.train.epochs


def _find_start(config: Config, run: Path, resume: str, training: PackedSplit) -> _Start:
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
        network=describe_network(config),
    )
    return _Start(fresh, None)


def _try_weights(config: Config, run: Path, resume: str, training: PackedSplit) -> None:
    """Raise what :func:`_take_weights` would, before there is a run."""
    if config.model.weights is not None and starts_afresh(run, resume):
        transfer_weights(Path(config.model.weights), _build_model(config, training))


def _build_model(config: Config, training: PackedSplit) -> DetectionModel:
    """The model with random weights."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model.description, len(training.names), names=training.names)
    model.image_size = config.loader.image_size
    model.data_digest = training.dataset_id
    freeze(model, config.model.freeze or "")
    return model


def _take_weights(config: ModelConfig, model: DetectionModel, comm: Communicator) -> Transfer | None:
    """Fill ``model`` from ``model.weights``, if there are any."""
    if config.weights is None:
        return None
    weights = Path(config.weights)
    transfer = on_every_rank(comm, "weights", lambda: transfer_weights(weights, model))
    LOGGER.info("took %d of %d tensors from %s", transfer.taken, transfer.total, weights)
    for name, reason in transfer.left.items():
        LOGGER.info("  not %s: %s", name, reason)
    return transfer


def _build_learner(
    config: Config,
    training: PackedSplit,
    model: DetectionModel,
    schedule: TrainingSchedule,
    sizes: InputSizes,
    start: _Start,
    job: Job,
) -> Learner:
    """All that a step changes, as it was at ``start``, and the same on all ranks."""
    model.to(job.device)
    settings = schedule.resolved
    average = MovingAverage(model, settings.ema_decay, settings.ema_ramp)
    factors = read_lr_factors(model, config.optimizer.lr_factors or "")
    optimizer = build_optimizer(model, settings, factors)
    _load_tensors(start, config, job.comm, model, average, optimizer)
    scaler = gradient_scaler(config.train.precision, job.device, config.distributed.compression)
    if start.state.scaler:
        scaler.load_state_dict(start.state.scaler)
    if config.train.sync_batch_norm:
        norms = convert_sync_batch_norm(model, job.comm)
        LOGGER.info("batch norm over all ranks: %d sums a batch, each a cycle of Horovod or more", 2 * norms)
    if config.train.compile:
        compile_network(model, config.train, several_sizes=len(sizes.choices) > 1)
    setting = config.loss.class_weights
    weights = None if setting is None else class_weights(setting, training.class_counts())
    return Learner(
        model=model,
        average=average,
        optimizer=optimizer,
        reduction=job.comm.reduce_gradients(optimizer, model),
        schedule=schedule,
        loss=config.loss,
        clip_norm=settings.clip_norm,
        device=job.device,
        beacon=job.beacon,
        precision=config.train.precision,
        class_weights=None if weights is None else weights.to(job.device),
        scaler=scaler,
        replayed=config.train.cuda_graphs,
        step=start.state.step,
    )


def _load_tensors(
    start: _Start,
    config: Config,
    comm: Communicator,
    model: DetectionModel,
    average: MovingAverage,
    optimizer: Optimizer,
) -> None:
    checkpoint = start.checkpoint
    if checkpoint is not None:
        on_every_rank(comm, "load", lambda: load_tensors(checkpoint, model, average, optimizer))
        average.updates = start.state.ema_updates
        done = start.state.epoch == config.train.epochs
        LOGGER.info("resumed from %s%s", checkpoint, ": all epochs are done" if done else "")
    else:
        LOGGER.info("no checkpoint to resume from: begins with the first epoch")
    comm.broadcast_state(model)
    comm.broadcast_state(average.model)


def _step_ranges(schedule: TrainingSchedule, state: TrainingState, epochs: int) -> Iterator[StepRange]:
    for epoch in range(state.epoch, epochs):
        yield from schedule.steps(epoch, state.batch if epoch == state.epoch else 0)
