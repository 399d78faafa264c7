"""Patience against sequences of scores that are followed by hand."""

import math

import pytest

from hvdyolo.engine.early_stopping import BestScore

BEFORE = BestScore(ap=-1.0, epoch=0, evaluated=0)


def stops_after(scores: dict[int, float], patience: int | None) -> int | None:
    """The epoch after which training with these scores ends early."""
    best = BEFORE
    for epoch, ap in scores.items():
        best = best.after(ap, epoch)
        if best.exhausts(patience):
            return epoch
    return None


@pytest.mark.parametrize(
    ("scores", "patience", "epoch"),
    [
        ([0.1, 0.3, 0.2, 0.2, 0.2], 1, 3),
        ([0.1, 0.3, 0.2, 0.2, 0.2], 3, 5),
        ([0.1, 0.3, 0.2, 0.2, 0.2], 4, None),
        ([0.1, 0.3, 0.2, 0.2, 0.2], None, None),
        ([0.1, 0.1, 0.1], 2, 3),  # as good is not better
        ([0.3, 0.2, 0.4, 0.3, 0.3], 2, 5),  # the best begins the count again
        ([-1.0, -1.0, -1.0], 3, 3),  # nothing to score is no progress
        ([0.1, math.nan, math.nan], 2, 3),
    ],
)
def test_training_ends_when_no_epoch_of_so_many_was_better(
    scores: list[float], patience: int | None, epoch: int | None
) -> None:
    assert stops_after(dict(enumerate(scores, 1)), patience) == epoch


def test_patience_counts_epochs_and_not_evaluations() -> None:
    every_tenth = {10: 0.3, 20: 0.2, 30: 0.2}
    assert stops_after(every_tenth, 10) == 20
    assert stops_after(every_tenth, 11) == 30


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    best = BEFORE.after(math.nan, 1)
    assert (best.ap, best.epoch) == (-1.0, 0)
    assert best.after(0.1, 2) == BestScore(0.1, 2, 2)
