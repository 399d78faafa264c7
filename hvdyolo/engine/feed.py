"""Optimizer steps with their batches, prepared one step ahead of training.

The loss of a step is normalised by how many images and matches *all* ranks have in *all* its batches
(DESIGN: world-size parity). These counts are known as soon as the batches are, so they are summed while
the step before still computes, in one small vector that also carries the request to stop and the losses
to be logged: a step costs one gradient reduction and one such vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hvdyolo.data.loader import TrainBatch
from hvdyolo.distributed.communicator import Communicator, PendingSum
from hvdyolo.engine.schedule import StepRange
from hvdyolo.engine.weights_digest import NUMBERS, all_agree, no_digest
from hvdyolo.objective.assign import LevelMatches
from hvdyolo.objective.loss import StepCounts
from hvdyolo.objective.targets import LevelTargets, pad_matches

# Where the vector is cut: the request to stop, three losses, the digest of the weights, the counts.
_SECTIONS = (1, 4, 4 + NUMBERS)

Matches = tuple[LevelMatches, ...]
"""What the loader's workers assign: a level each."""


@dataclass(frozen=True)
class Report:
    """What a rank tells the others along with its counts.

    Attributes:
        stop: this rank was asked to stop.
        losses: (3,) its shares of the box, objectness and class terms of some step.
        losses_of: number of that step; ``None``: this attempt has taken none yet.
        weights: the digest of its weights, where they are due to be compared.
    """

    stop: bool
    losses: Tensor
    losses_of: int | None = None
    weights: Tensor = field(default_factory=no_digest)


@dataclass(frozen=True)
class MicroBatch:
    """This rank's part of one batch, with the padded targets of its loss."""

    batch: TrainBatch[Matches]
    targets: tuple[LevelTargets, ...]


@dataclass(frozen=True)
class Step:
    """One optimizer step, as all ranks agree on it.

    Attributes:
        range: which batches; ``None`` after the last step of the run.
        batches: this rank's parts of them.
        counts: images and matches over all ranks and batches of the step.
        stop: some rank was asked to stop before this step.
        losses: (3,) box, objectness and class terms of the step ``losses_of``, summed over ranks.
        losses_of: two steps before this one, for its own are not known as its counts are sent around.
        weights_agree: all ranks reported the same digest of their weights.
    """

    range: StepRange | None
    batches: tuple[MicroBatch, ...]
    counts: StepCounts
    stop: bool
    losses: Tensor
    losses_of: int | None
    weights_agree: bool


@dataclass(frozen=True)
class UpcomingStep:
    """A step whose counts are on their way."""

    range: StepRange | None
    batches: tuple[MicroBatch, ...]
    losses_of: int | None
    pending: PendingSum

    @property
    def waited(self) -> float:
        """Seconds that its batches were waited for."""
        return sum(micro.batch.wait_seconds for micro in self.batches)

    def agree(self, device: torch.device) -> Step:
        """Wait for the other ranks' counts."""
        stop, losses, weights, counts = self.pending.wait().tensor_split(_SECTIONS)
        images, matches = counts.to(device, non_blocking=True).tensor_split([1])
        return Step(
            range=self.range,
            batches=self.batches,
            counts=StepCounts(images=images[0], matches=matches),
            stop=bool(stop > 0),
            losses=losses,
            losses_of=self.losses_of,
            weights_agree=all_agree(weights),
        )


@dataclass(frozen=True)
class CellCounts:
    """Numbers of (image, anchor, row, column) cells in a rank's batches.

    Attributes:
        images: of a batch.
        anchors: a cell.
        strides: of the levels.
    """

    images: int
    anchors: int
    strides: tuple[int, ...]

    @property
    def levels(self) -> int:
        return len(self.strides)

    def of(self, input_size: int) -> list[int]:
        """Cells of each level at one size of the input."""
        return [self.images * self.anchors * (input_size // stride) ** 2 for stride in self.strides]


class StepFeed:
    """Groups a rank's batches into steps and sends their counts around.

    Args:
        batches: this rank's batches, in order.
        ranges: the steps they make up, in the same order.
        cells: of each level in a batch.
    """

    def __init__(
        self,
        batches: Iterator[TrainBatch[Matches]],
        ranges: Iterator[StepRange],
        comm: Communicator,
        cells: CellCounts,
    ) -> None:
        self._batches = batches
        self._ranges = ranges
        self._comm = comm
        self._cells = cells

    def next(self, report: Report) -> UpcomingStep:
        """Load the next step's batches and start summing its counts."""
        step = next(self._ranges, None)
        batches = tuple(next(self._batches) for _ in range(step.passes)) if step else ()
        counts = sum(map(self._counts, batches), start=torch.zeros(1 + self._cells.levels))
        parts = (torch.tensor([float(report.stop)]), report.losses.cpu(), report.weights, counts)
        # In double precision: a float sum of counts would be exact only up to 2^24.
        pending = self._comm.sum_async("step", torch.cat([part.double() for part in parts]))
        micro_batches = tuple(
            MicroBatch(batch, pad_matches(batch.matches, self._cells.of(batch.input_size)))
            for batch in batches
        )
        return UpcomingStep(step, micro_batches, report.losses_of, pending)

    def _counts(self, batch: TrainBatch[Matches]) -> Tensor:
        parts = batch.matches
        matches = [float(sum(len(part[level].cell) for part in parts)) for level in range(self._cells.levels)]
        return torch.tensor([float(batch.weights.sum()), *matches])
