"""What is counted while training: speed, losses, and what was left out."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hvdyolo.distributed.communicator import Communicator
from hvdyolo.engine.feed import Step


@dataclass(frozen=True)
class EpochSums:
    """What all ranks have counted of an epoch so far; a checkpoint within it keeps them.

    Attributes:
        losses: box, objectness and class terms, summed over the steps that were applied.
        steps: all of them, ``skipped_steps`` too: those that were not applied.
        skipped_samples: damaged ones that were left out.
    """

    losses: list[float] = field(default_factory=lambda: [0.0] * 3)
    steps: int = 0
    skipped_samples: int = 0
    skipped_steps: int = 0

    @property
    def mean_losses(self) -> list[float]:
        """Of a step that was applied."""
        return [total / max(self.steps - self.skipped_steps, 1) for total in self.losses]


@dataclass
class Tally:
    """Steps, images of all ranks, and this rank's own, since ``started``.

    Attributes:
        waited: seconds for the loader.
        losses: (3,) this rank's shares of box, objectness and class terms, of the steps that were applied.
        skipped: damaged samples that were left out.
        skipped_steps: steps that were not applied because their gradient was not finite.
        before: what an attempt before this one has counted of the same epoch; no part of the speed.
    """

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    images: float = 0.0
    waited: float = 0.0
    losses: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    skipped: int = 0
    skipped_steps: int = 0
    before: EpochSums = field(default_factory=EpochSums)

    def add(self, step: Step, losses: Tensor | None, waited: float) -> None:
        """Count one step, in whose time the loader was waited for: for the batches of the next step.

        ``losses`` are this rank's shares, on the CPU; ``None``: the step was not applied.
        """
        self.steps += 1
        self.images += float(step.counts.images)
        self.waited += waited
        self.skipped += sum(micro.batch.skipped for micro in step.batches)
        if losses is None:
            self.skipped_steps += 1
        else:
            self.losses += losses

    def speed(self) -> dict[str, float]:
        """Images a second over all ranks and the percentage of time without data; nothing without a step."""
        if not self.steps:
            return {}
        seconds = max(time.monotonic() - self.started, 1e-9)
        return {
            "images_per_second": round(self.images / seconds, 2),
            "wait_percent": round(100 * self.waited / seconds, 2),
        }

    def sums(self, comm: Communicator) -> EpochSums:
        """Over all ranks, with what was counted ``before``."""
        # Shares of the ranks add up to the losses of whole steps.
        *losses, skipped = comm.sum("epoch", torch.cat([self.losses, torch.tensor([float(self.skipped)])]))
        return EpochSums(
            losses=[old + float(new) for old, new in zip(self.before.losses, losses, strict=True)],
            steps=self.before.steps + self.steps,
            skipped_samples=self.before.skipped_samples + int(skipped),
            skipped_steps=self.before.skipped_steps + self.skipped_steps,
        )
