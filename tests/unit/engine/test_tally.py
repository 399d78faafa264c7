"""Sums of an epoch over ranks and attempts, by hand."""

import torch
from torch import Tensor

from hvdyolo.distributed.single import SingleProcess
from hvdyolo.engine.tally import EpochSums, Tally


class ThreeAlike(SingleProcess):
    """Three ranks that have counted the same."""

    def sum(self, name: str, tensor: Tensor) -> Tensor:
        return 3 * tensor


def test_what_an_attempt_before_has_counted_is_added_once_by_however_many_ranks() -> None:
    before = EpochSums([10.0, 20.0, 30.0], steps=3, skipped_samples=4, skipped_steps=1)
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    tally = Tally(steps=2, losses=losses, skipped=1, skipped_steps=1, before=before)
    sums = tally.sums(ThreeAlike())
    assert sums == EpochSums([13.0, 26.0, 39.0], steps=5, skipped_samples=7, skipped_steps=2)
    assert sums.mean_losses == [13 / 3, 26 / 3, 13.0]


def test_an_epoch_of_which_no_step_was_applied_has_no_loss() -> None:
    assert EpochSums(steps=2, skipped_steps=2).mean_losses == [0.0] * 3


def test_there_is_no_speed_without_a_step() -> None:
    before = EpochSums(steps=3)
    assert Tally(before=before).speed() == {}
    assert Tally(steps=1, images=8, before=before).speed()["images_per_second"] > 0
