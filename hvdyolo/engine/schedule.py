"""When the optimizer steps, and with which learning rates and momentum.

Everything here is a pure function of the batch number, so a resumed run continues exactly. The formulas
are YOLOv5's as published; a step here never crosses an epoch boundary (see
docs/differences_from_yolov5.md).
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.large_batch import LONGEST_WARMUP, settings_for_batch


@dataclass(frozen=True)
class StepRange:
    """The batches ``first … first + passes - 1`` of an epoch, which make up one optimizer step."""

    epoch: int
    first: int
    passes: int


@dataclass(frozen=True)
class StepRates:
    """What the optimizer's groups are set to for one step."""

    lr: float
    bias_lr: float
    momentum: float


@dataclass(frozen=True)
class TrainingSchedule:
    """Accumulation, learning rates and momentum of a whole run.

    ``settings`` are as configured; ``batch`` is the global batch, images; ``batches`` the batches an epoch.
    """

    settings: OptimizerConfig
    epochs: int
    batches: int
    batch: int

    @cached_property
    def resolved(self) -> OptimizerConfig:
        """The settings as they hold for this batch."""
        return settings_for_batch(self.settings, self.batch, self.accumulation, self.epochs)

    @property
    def warmup_batches(self) -> int:
        """Batches over which rates, momentum and accumulation ramp up."""
        by_epochs = round(self.resolved.warmup_epochs * self.batches)
        least = self.settings.warmup_min_batches
        # Large batches make few of a run: so many may be all of it, and the rate would never be reached.
        if self.batch > self.settings.nominal_batch:
            least = min(least, round(LONGEST_WARMUP * self.epochs * self.batches))
        return max(by_epochs, least) if by_epochs else 0

    @property
    def accumulation(self) -> int:
        """Batches an optimizer step after warm-up."""
        return max(round(self.settings.nominal_batch / self.batch), 1)

    def steps(self, epoch: int, first: int = 0) -> Iterator[StepRange]:
        """The optimizer steps of ``epoch`` from batch ``first``, itself the start of a step."""
        while first < self.batches:
            passes = 1
            while first + passes < self.batches and passes < self._accumulation_at(
                epoch * self.batches + first + passes - 1
            ):
                passes += 1
            yield StepRange(epoch, first, passes)
            first += passes

    def step_at(self, epoch: int, batch: int) -> StepRange:
        """The optimizer step that takes ``batch`` of ``epoch``."""
        firsts = _firsts(self, epoch)
        step = bisect_right(firsts, batch) - 1
        after = firsts[step + 1] if step + 1 < len(firsts) else self.batches
        return StepRange(epoch, firsts[step], after - firsts[step])

    def rates(self, step: StepRange) -> StepRates:
        """Rates for ``step``; during warm-up those of its last batch."""
        settings = self.resolved
        lr = settings.lr * self._decline(step.epoch)
        batch = step.epoch * self.batches + step.first + step.passes - 1
        if batch > self.warmup_batches or not self.warmup_batches:
            return StepRates(lr, lr, settings.momentum)
        share = batch / self.warmup_batches
        return StepRates(
            lr=share * lr,
            bias_lr=settings.warmup_bias_lr + share * (lr - settings.warmup_bias_lr),
            momentum=settings.warmup_momentum + share * (settings.momentum - settings.warmup_momentum),
        )

    def _accumulation_at(self, batch: int) -> int:
        """Batches a step when it ends at ``batch`` of the run: ramps up with the learning rate."""
        if batch >= self.warmup_batches:
            return self.accumulation
        share = batch / self.warmup_batches
        return max(round(1 + share * (self.settings.nominal_batch / self.batch - 1)), 1)

    def _decline(self, epoch: int) -> float:
        """Factor of the learning rate in ``epoch``: 1 at the first, towards ``lr_final``."""
        share = epoch / self.epochs
        if self.settings.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return (1 - share) * (1 - self.settings.lr_final) + self.settings.lr_final


@lru_cache(maxsize=1)
def _firsts(schedule: TrainingSchedule, epoch: int) -> list[int]:
    """First batch of each step of an epoch, whose batches are asked for one after the other."""
    return [step.first for step in schedule.steps(epoch)]
