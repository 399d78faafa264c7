"""The model, what changes it, and one optimizer step."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

from hvdyolo.config import LossConfig
from hvdyolo.distributed.communicator import GradientReduction
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.compilation import record_network
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import MicroBatch, Step
from hvdyolo.engine.optimizer import apply_rates
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.models.build import DetectionModel
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.utils.errors import InternalError

_MOST_SKIPPED_STEPS = 20  # in a row: a run whose gradients stay non-finite does not recover


@dataclass
class Learner:
    """Takes optimizer steps.

    Attributes:
        reduction: ``optimizer`` with its gradients summed over ranks.
        clip_norm: largest norm of the summed gradient.
        precision: ``bf16`` runs the network under autocast.
        unrecorded: the network is to be recorded as CUDA graphs at its next call.
        step: optimizer steps done.
        skipped: steps in a row that were not applied because the gradient was not finite.
    """

    model: DetectionModel
    average: MovingAverage
    optimizer: SGD
    reduction: GradientReduction
    schedule: TrainingSchedule
    loss: LossConfig
    clip_norm: float
    device: torch.device
    beacon: Beacon
    precision: Literal["fp32", "bf16"] = "fp32"
    unrecorded: bool = False
    step: int = 0
    skipped: int = 0

    def train_step(self, step: Step) -> Tensor:
        """Learn from one step's batches.

        Returns:
            (3,) this rank's shares of the box, objectness and class terms.
        """
        assert step.range is not None
        apply_rates(self.optimizer, self.schedule.rates(step.range))
        self.reduction.begin(len(step.batches))
        losses = torch.zeros(3, device=self.device)
        for micro_batch in step.batches:
            self.beacon.beat("compute", self.step)
            losses += self._accumulate(micro_batch, step.counts)
        self.beacon.beat("reduce", self.step, waits=True)
        self.reduction.wait()
        norm = clip_grad_norm_(self.model.parameters(), self.clip_norm)
        # Summed over ranks, it is non-finite on all of them if on any: all decide alike.
        if torch.isfinite(norm):
            self.reduction.step()
            self.average.update(self.model)
            self.skipped = 0
        else:
            self._skip()
        self.reduction.zero_grad()
        self.step += 1
        return losses

    def _moved(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.device)

    def _accumulate(self, micro_batch: MicroBatch, counts: StepCounts) -> Tensor:
        """Add one batch's share of the step's gradient."""
        batch = micro_batch.batch
        images = prepare_images(
            batch.images.to(self.device),
            self._moved(batch.flip),
            self._moved(batch.colour_gains),
            dtype=next(self.model.parameters()).dtype,
            size=batch.input_size,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.unrecorded:
                record_network(self.model, images)
                self.unrecorded = False
            levels = self.model(images)  # per level (B, 3, H, W, 5 + classes)
        if self.precision == "bf16":
            levels = [level.float() for level in levels]
        terms = detection_loss(
            levels,
            [targets.to(self.device) for targets in micro_batch.targets],
            batch.weights.to(self.device),
            counts,
            self.loss,
            # Of the setting, not of the step: gains would change with the size otherwise.
            batch.images.shape[1],
        )
        terms.total.backward()  # type: ignore[no-untyped-call]
        return torch.stack([terms.box, terms.objectness, terms.classification]).detach().float()

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped >= _MOST_SKIPPED_STEPS:
            raise InternalError(
                f"The gradient was not finite in {self.skipped} steps in a row up to step {self.step}; "
                "lower optimizer.lr or look at the data of these steps."
            )
