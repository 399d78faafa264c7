"""The training loop: steps, evaluations, checkpoints, and what is told about them."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hvdyolo.config import Config
from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.agreement import on_first_rank
from hvdyolo.engine.attempt import Attempt
from hvdyolo.engine.checkpoint import TrainingState, save_checkpoint
from hvdyolo.engine.evaluator import evaluate
from hvdyolo.engine.feed import Report, Step, StepFeed
from hvdyolo.engine.image_weighting import ImageWeighting
from hvdyolo.engine.journal import LOGGER, Journal
from hvdyolo.engine.learner import Learner
from hvdyolo.engine.peak_memory import peak_memory
from hvdyolo.engine.preemption import StopRequest
from hvdyolo.engine.schedule import StepRange
from hvdyolo.engine.tally import EpochSums, Tally
from hvdyolo.engine.weights_digest import all_agree, first_non_finite, no_digest, weights_digest
from hvdyolo.metrics.average_precision import CocoScores
from hvdyolo.models.build import save_model
from hvdyolo.utils.errors import InternalError, Preempted

_TERMS = ("box", "objectness", "classification")
_STEPS_BETWEEN_COMPARISONS = 50


class Trainer:
    """Runs ``learner`` over ``feed`` from ``state`` to the last epoch.

    The parts are built by :mod:`hvdyolo.engine.training`. ``journal`` is kept by rank 0 alone.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        comm: Communicator,
        learner: Learner,
        feed: StepFeed,
        validation: PackedSplit,
        weighting: ImageWeighting | None,
        state: TrainingState,
        journal: Journal | None,
        beacon: Beacon,
        stop: StopRequest,
        attempt: Attempt,
    ) -> None:
        self.config = config
        self.comm = comm
        self.learner = learner
        self.feed = feed
        self.validation = validation
        self.weighting = weighting
        self.beacon = beacon
        self.stop = stop
        self.attempt = attempt
        self._best = state.best_score
        self._start = state
        self._checkpoints = run / "checkpoints"
        self._weights = run / "weights"
        self._journal = journal
        self._losses = torch.zeros(3)
        self._tally = Tally()  # of the epoch
        self._told_damaged: set[int] = set()
        self._upcoming = feed.next(self._report())

    def run(self) -> None:
        """Train to the last epoch, or until patience is exhausted.

        Raises:
            Preempted: a rank was asked to stop; a checkpoint has been saved.
        """
        for epoch in range(self._start.epoch, self.config.train.epochs):
            if self._patience_is_exhausted:
                self._stop_early()
                break
            self.learner.model.train()
            self._tally = Tally(before=self._start.so_far if epoch == self._start.epoch else EpochSums())
            results = self._train_epoch(epoch)
            self._finish_epoch(epoch, results)

    def _stop_early(self) -> None:
        self.attempt.detail = self._best.verdict()
        LOGGER.info("%s", self.attempt.detail)
        self._settle_upcoming()

    def _settle_upcoming(self) -> None:
        """Before leaving: the next step's counts are on their way, and others wait for this rank's."""
        self._upcoming.agree(self.learner.device)

    @property
    def _patience_is_exhausted(self) -> bool:
        """The same on all ranks, because scores are."""
        return self._best.exhausts(self.config.train.patience)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Take the epoch's steps; returns its mean losses, its speed and how many samples were skipped."""
        window = Tally()
        with self._progress(epoch) as steps:
            for step in steps:
                self._tell_damaged(step)
                self._losses = self.learner.train_step(step, self._load_next).cpu()
                self.attempt.step, self.attempt.epoch = self.learner.step, epoch
                if self.learner.skipped:
                    self._tell_skipped_step()
                applied = None if self.learner.skipped else self._losses
                for tally in (self._tally, window):
                    tally.add(step, applied, self._upcoming.waited)
                if self.learner.step % self.config.train.log_every == 0:
                    self._log_step(step, window)
                    window = Tally()
        sums = self._tally.sums(self.comm)
        memory = self.comm.gather_objects("memory", peak_memory(self.learner.device))
        if sums.skipped_samples:
            LOGGER.warning("epoch %d: %d damaged samples were skipped", epoch + 1, sums.skipped_samples)
        return {
            **dict(zip(_TERMS, _rounded(sums.mean_losses), strict=True)),
            **self._tally.speed(),
            "skipped_samples": sums.skipped_samples,
            "skipped_steps": sums.skipped_steps,
            "peak_memory_mb": round(max(memory), 1),
        }

    @contextmanager
    def _progress(self, epoch: int) -> Iterator[Iterable[Step]]:
        """The epoch's steps, with a bar on rank 0 if it has a terminal, and log lines above the bar."""
        steps = self._steps(epoch)
        if self.comm.world.rank != 0 or not sys.stderr.isatty():
            yield steps
            return
        total = sum(1 for _ in self.learner.schedule.steps(epoch))
        with (
            logging_redirect_tqdm([LOGGER]),
            tqdm(steps, f"epoch {epoch + 1}/{self.config.train.epochs}", total, unit="step") as bar,
        ):
            yield bar

    def _steps(self, epoch: int) -> Iterator[Step]:
        """The steps of ``epoch``; while one is taken, the next has to be loaded."""
        while (current := self._upcoming.range) is not None and current.epoch == epoch:
            self.beacon.beat("agree on step", self.learner.step, waits=True)
            step = self._upcoming.agree(self.learner.device)
            self._require_agreement(step.weights_agree)
            if step.stop:
                self._stop_before(current)
            yield step

    def _load_next(self) -> None:
        """Take the next step's batches, and send their counts around."""
        self.beacon.beat("load", self.learner.step)
        self._upcoming = self.feed.next(self._report())

    def _report(self) -> Report:
        """What the other ranks are told with the next step's counts."""
        due = self.comm.world.size > 1 and self.learner.step % _STEPS_BETWEEN_COMPARISONS == 0
        weights = weights_digest(*self._same_on_all_ranks) if due else no_digest()
        # Of the step that is being taken nothing is known yet.
        losses_of = self.learner.step if self.learner.step > self._start.step else None
        return Report(self.stop.requested, self._losses, losses_of, weights)

    def _require_agreement(self, weights_agree: bool) -> None:
        """Raise an :class:`InternalError` that names the first parameter that differs, and the ranks."""
        if not weights_agree:
            # Of parameters only: running statistics are each rank's own until they are averaged.
            model, average = (dict(part.named_parameters()) for part in self._same_on_all_ranks)
            averages = {f"the moving average of {name}": value for name, value in average.items()}
            self.comm.check_equal(model | averages)

    @property
    def _same_on_all_ranks(self) -> tuple[nn.Module, nn.Module]:
        """What is learnt, and its moving average, which is what gets scored and saved."""
        return self.learner.model, self.learner.average.model

    def _stop_before(self, step: StepRange) -> None:
        self._save_checkpoint(step.epoch, step.first)
        raise self._preempted()

    def _stop_evaluating(self, epoch: int) -> NoReturn:
        """Whoever resumes finds no step left of ``epoch``, and begins with its evaluation."""
        self._settle_upcoming()
        self._save_checkpoint(epoch, self.learner.schedule.batches)
        raise self._preempted()

    def _preempted(self) -> Preempted:
        return Preempted(f"Stopped on request at step {self.learner.step}; the same command resumes.")

    def _finish_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """Evaluate, save and tell what is due after ``epoch``."""
        done = epoch + 1
        last = done == self.config.train.epochs
        schedule = self.learner.schedule
        rates = schedule.rates(schedule.step_at(epoch, schedule.batches - 1))
        results = {"lr": rates.lr, **results}
        self._settle_weights()
        if last or done % self.config.train.eval_every == 0:
            try:
                scores = self._evaluate()
            except Preempted:
                self._stop_evaluating(epoch)
            results |= {
                f.name: getattr(scores, f.name) for f in dataclasses.fields(scores) if f.name.startswith("ap")
            }
            self._save_weights(scores, done)
            if self.weighting is not None:
                self.weighting.note(done, [scores.classes[name]["ap"] for name in self.validation.names])
            LOGGER.info(
                "epoch %d/%d  AP %.3f  AP50 %.3f  (%d images, %d boxes)  at most %.0f MiB a rank",
                done, self.config.train.epochs, scores.ap, scores.ap50, scores.images, scores.instances,
                results["peak_memory_mb"],
            )  # fmt: skip
        if self._journal is not None:
            self._journal.record("epoch", self.learner.step, epoch, results)
        if last or self._patience_is_exhausted or done % self.config.train.checkpoint_every == 0:
            self._save_checkpoint(done, 0)

    def _evaluate(self) -> CocoScores:
        return evaluate(
            self.learner.average.model,
            self.validation,
            self.comm,
            self.learner.device,
            self.config.evaluation,
            self.config.loader,
            self.beacon,
            self.learner.step,
            self.stop,
        )

    def _settle_weights(self) -> None:
        """Make the ranks' batch-norm statistics one, which Horovod never does by itself; then all is equal.

        Raises:
            InternalError: something is not finite or not the same on all ranks, and must be neither scored
                nor saved.
        """
        self.beacon.beat("average statistics", self.learner.step, waits=True)
        model, average = self._same_on_all_ranks
        self.comm.average_running_statistics(model)
        self.comm.average_running_statistics(average)
        spoiled = first_non_finite(average) or first_non_finite(model)
        report = torch.cat([weights_digest(model, average), torch.tensor([float(spoiled is not None)])])
        total = self.comm.sum("weights", report)
        self._require_agreement(all_agree(total[:-1]))
        if total[-1] > 0:
            self._end_not_finite(spoiled)

    def _end_not_finite(self, spoiled: str | None) -> NoReturn:
        """Raise the error that all ranks raise alike, if ``spoiled`` is a tensor on some of them."""
        names = self.comm.gather_objects("not finite", spoiled)
        error = InternalError(
            f"{next(filter(None, names))} is not finite any more, so nothing of it is saved; train anew with "
            "a lower optimizer.lr, from weights/last.safetensors by model.weights if they are worth it."
        )
        error.agreed = True
        raise error

    def _save_weights(self, scores: CocoScores, done: int) -> None:
        """Write ``weights/last``, and ``weights/best`` if it is, when ``done`` epochs are."""
        self._best = self._best.after(scores.ap, done)
        best = self._best.epoch == done

        def save() -> None:
            for name in ("last", "best") if best else ("last",):
                save_model(self.learner.average.model, self._weights / f"{name}.safetensors")

        self.beacon.beat("save", self.learner.step, waits=self.comm.world.rank != 0)
        on_first_rank(self.comm, "save weights", save)

    def _save_checkpoint(self, epoch: int, batch: int) -> None:
        """Save a checkpoint from which ``batch`` of ``epoch`` is the next to be learnt."""
        self._settle_weights()
        state = dataclasses.replace(
            self._start,
            step=self.learner.step,
            epoch=epoch,
            batch=batch,
            best_ap=self._best.ap,
            best_epoch=self._best.epoch,
            evaluated_epoch=self._best.evaluated,
            class_scores=[] if self.weighting is None else list(self.weighting.evaluations.items()),
            ema_updates=self.learner.average.updates,
            scaler=self.learner.scaler.state_dict(),
            so_far=self._tally.sums(self.comm) if batch else EpochSums(),
        )
        self.beacon.beat("save", self.learner.step, waits=self.comm.world.rank != 0)
        on_first_rank(
            self.comm,
            "save checkpoint",
            lambda: save_checkpoint(
                self._checkpoints,
                state,
                self.learner.model,
                self.learner.average,
                self.learner.optimizer,
                self.config.train.keep_checkpoints,
            ),
        )

    def _tell_damaged(self, step: Step) -> None:
        """Name the damaged samples among this rank's, each once."""
        for micro in step.batches:
            for sample, reason in micro.batch.damaged.items():
                if sample not in self._told_damaged:
                    self._told_damaged.add(sample)
                    LOGGER.warning("skipped: %s", reason)

    def _tell_skipped_step(self) -> None:
        own = "" if self._losses.isfinite().all() else "; nor was this rank's loss"
        LOGGER.warning("step %d was skipped: its gradient was not finite%s", self.learner.step, own)

    def _log_step(self, step: Step, window: Tally) -> None:
        """Tell the speed since the last line, and the newest losses that came with ``step``, if any have."""
        assert step.range is not None
        known = step.losses_of is not None
        losses = dict(zip(_TERMS, _rounded(step.losses), strict=True)) if known else {}
        speed = window.speed()
        LOGGER.info(
            "epoch %d/%d  step %d  %s%.1f images/s  wait %.1f%%",
            step.range.epoch + 1, self.config.train.epochs, self.learner.step,
            "box {:.4f}  objectness {:.4f}  class {:.4f}  ".format(*losses.values()) if known else "",
            *speed.values(),
        )  # fmt: skip
        if self._journal is not None:
            values = {
                "lr": self.learner.schedule.rates(step.range).lr,
                "losses_of_step": step.losses_of,
                **losses,
                **speed,
            }
            self._journal.record("step", self.learner.step, step.range.epoch, values)


def _rounded(losses: Iterable[Tensor | float]) -> list[float]:
    return [round(float(value), 6) for value in losses]
