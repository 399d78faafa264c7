"""When training has gone on long enough without a better score.

Scores are merged before they are compared, so every rank takes the same decision without asking the others,
and what it is taken from is in the checkpoint, so a resumed run takes it at the same epoch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BestScore:
    """The best evaluation of a run.

    Attributes:
        ap: its COCO AP, -1 before the first evaluation.
        epoch: epochs that were done at it, 0 before the first.
        evaluated: epochs that were done at the last evaluation.
    """

    ap: float
    epoch: int
    evaluated: int

    def after(self, ap: float, epoch: int) -> "BestScore":
        """With an evaluation when ``epoch`` epochs were done. A score that is no number is never the best."""
        if ap > self.ap:
            return BestScore(ap, epoch, epoch)
        return BestScore(self.ap, self.epoch, epoch)

    def exhausts(self, patience: int | None) -> bool:
        """Whether ``patience`` epochs have gone by without a better score; ``None`` waits for ever."""
        return patience is not None and self.evaluated - self.epoch >= patience

    def verdict(self) -> str:
        """Why training ends when patience is exhausted."""
        best = f"since epoch {self.epoch} ({self.ap:.3f})"
        return f"stopped early after epoch {self.evaluated}: no better AP {best}"
