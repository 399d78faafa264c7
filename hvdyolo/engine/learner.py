"""The model, what changes it, and one optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from hvdyolo.config import LossConfig
from hvdyolo.distributed.communicator import GradientReduction
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import MicroBatch, Step
from hvdyolo.engine.optimizer import apply_rates
from hvdyolo.engine.precision import Precision, no_scaling, reduced_precision
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.models.build import DetectionModel
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import move_targets
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.ops.tensor_lists import copies_of, copy_tensors
from hvdyolo.utils.errors import InternalError

_MOST_SKIPPED_STEPS = 20  # in a row: a run whose gradients stay non-finite does not recover


@dataclass
class Learner:
    """Takes optimizer steps.

    Attributes:
        reduction: ``optimizer`` with its gradients summed over ranks.
        clip_norm: largest norm of the summed gradient.
        class_weights: (C,) of the class term, on the device.
        precision: of the network's convolutions and products.
        scaler: multiplies the loss, so that gradients are in the range of fp16.
        replayed: gradients come from CUDA graphs, in memory that these overwrite with the next batch's.
        step: optimizer steps done.
        skipped: steps in a row that were not applied because the gradient was not finite.
    """

    model: DetectionModel
    average: MovingAverage
    optimizer: Optimizer
    reduction: GradientReduction
    schedule: TrainingSchedule
    loss: LossConfig
    clip_norm: float
    device: torch.device
    beacon: Beacon
    class_weights: Tensor | None = None
    precision: Precision = "fp32"
    scaler: GradScaler = field(default_factory=no_scaling)
    replayed: bool = False
    step: int = 0
    skipped: int = 0

    def train_step(self, step: Step, meanwhile: Callable[[], None] = lambda: None) -> Tensor:
        """Learn from one step's batches.

        Args:
            meanwhile: called once, when the device has all backward passes before it and gradients are on
                their way: there is time to load.

        Returns:
            (3,) this rank's shares of the box, objectness and class terms.
        """
        assert step.range is not None
        apply_rates(self.optimizer, self.schedule.rates(step.range))
        self.reduction.begin(len(step.batches))
        buffers = copies_of(list(self.model.buffers()))
        losses = torch.zeros(3, device=self.device)
        for micro_batch in step.batches:
            self.beacon.beat("compute", self.step)
            losses += self._accumulate(micro_batch, step.counts)
            if self.replayed and micro_batch is not step.batches[-1]:
                self._own_gradients()
        meanwhile()
        self.beacon.beat("reduce", self.step, waits=True)
        self.reduction.wait()
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.clip_norm)
        # Summed over ranks, it is non-finite on all of them if on any: all decide alike.
        if torch.isfinite(norm):
            self.reduction.step()
            self.average.update(self.model)
            self.skipped = 0
        else:
            self._skip(buffers)
        self.scaler.update()
        self.reduction.zero_grad()
        self.step += 1
        return losses

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for what that is still computing."""
        return tensor.to(self.device, non_blocking=True)

    def _own_gradients(self) -> None:
        """Move gradients out of the graphs' memory, where the next batch's would be added to themselves."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def _accumulate(self, micro_batch: MicroBatch, counts: StepCounts) -> Tensor:
        """Add one batch's share of the step's gradient."""
        batch = micro_batch.batch
        images = prepare_images(
            self._moved(batch.images),
            None if batch.flip is None else self._moved(batch.flip),
            None if batch.colour_gains is None else self._moved(batch.colour_gains),
            dtype=next(self.model.parameters()).dtype,
            size=batch.input_size,
        )
        targets = move_targets(micro_batch.targets, self.device)
        weights = self._moved(batch.weights)
        with reduced_precision(self.precision, self.device):
            levels = self.model(images)  # per level (B, 3, H, W, 5 + classes)
        if self.precision != "fp32":
            levels = [level.float() for level in levels]
        terms = detection_loss(
            levels,
            targets,
            weights,
            counts,
            self.loss,
            # Of the setting, not of the step: gains would change with the size otherwise.
            batch.images.shape[1],
            self.class_weights,
        )
        self.scaler.scale(terms.total).backward()  # type: ignore[no-untyped-call]
        return torch.stack([terms.box, terms.objectness, terms.classification]).detach().float()

    def _skip(self, buffers: list[Tensor]) -> None:
        """Leave no trace of a step: what made the gradient non-finite may be in running statistics too."""
        copy_tensors(self.model.buffers(), buffers)
        self.skipped += 1
        if self.skipped >= _MOST_SKIPPED_STEPS:
            error = InternalError(
                f"The gradient was not finite in {self.skipped} steps in a row up to step {self.step}; "
                "look at the data of these steps, or train anew with a lower optimizer.lr."
            )
            error.agreed = True
            raise error
