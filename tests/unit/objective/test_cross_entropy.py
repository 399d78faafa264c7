"""The focal loss against numbers computed by hand, and its slopes."""

import math

import pytest
import torch

from hvdyolo.objective.cross_entropy import binary_cross_entropies


def entropy(logit: float, target: float, positive: float, gamma: float) -> float:
    values = torch.tensor([logit, target], dtype=torch.float64)
    return binary_cross_entropies(values[:1], values[1:], positive, gamma).item()


LOGIT_3_OF_4 = math.log(3)  # whose probability is 3/4


@pytest.mark.parametrize(
    ("target", "gamma", "expected"),
    [
        (1.0, 2.0, 0.25 * (1 / 4) ** 2 * -math.log(3 / 4)),
        (0.0, 2.0, 0.75 * (3 / 4) ** 2 * -math.log(1 / 4)),
        (1.0, 0.5, 0.25 * (1 / 2) * -math.log(3 / 4)),
        # Half way, p_t is 1/2 and alpha_t 1/2; the entropy that of both.
        (0.5, 2.0, 0.5 * (1 / 2) ** 2 * -0.5 * (math.log(3 / 4) + math.log(1 / 4))),
        (1.0, 0.0, -math.log(3 / 4)),  # without alpha
    ],
)
def test_values(target: float, gamma: float, expected: float) -> None:
    assert entropy(LOGIT_3_OF_4, target, 1.0, gamma) == pytest.approx(expected, rel=1e-12)


def test_the_weight_of_positives_is_of_the_entropy() -> None:
    assert entropy(LOGIT_3_OF_4, 1.0, 3.0, 2.0) == pytest.approx(3 * entropy(LOGIT_3_OF_4, 1.0, 1.0, 2.0))
    assert entropy(LOGIT_3_OF_4, 0.0, 3.0, 2.0) == entropy(LOGIT_3_OF_4, 0.0, 1.0, 2.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_slopes_are_those_of_the_values(gamma: float) -> None:
    logits = torch.linspace(-4, 4, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0.0, 1.0, 0.3, 0.95], dtype=torch.float64).repeat(3)
    assert torch.autograd.gradcheck(lambda x: binary_cross_entropies(x, targets, 1.5, gamma), logits)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_predictions_far_out_have_finite_slopes(gamma: float) -> None:
    logits = torch.tensor([-200.0, -30.0, 30.0, 200.0], requires_grad=True)
    for target in (0.0, 1.0):
        losses = binary_cross_entropies(logits, torch.full((4,), target), 1.0, gamma)
        (slopes,) = torch.autograd.grad(losses.sum(), logits)
        assert losses.isfinite().all()
        assert slopes.isfinite().all()
    # Nothing is left of a good prediction, and a bad one's slope is plain cross entropy's.
    assert losses[2:].max() < 1e-6
    assert slopes[0].item() == pytest.approx(-0.25)
