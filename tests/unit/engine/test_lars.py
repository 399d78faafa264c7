"""LARS against steps computed by hand."""

import pytest
import torch
from torch import Tensor, nn

from hvdyolo.engine.lars import Lars


def parameter(*values: float, gradient: tuple[float, ...]) -> nn.Parameter:
    made = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    made.grad = torch.tensor(gradient, dtype=torch.float64)
    return made


def values(tensor: Tensor) -> list[float]:
    return [pytest.approx(value, rel=1e-12) for value in tensor.tolist()]


def test_two_steps_with_decay_and_momentum() -> None:
    weights = parameter(3.0, 4.0, gradient=(0.0, 2.0))  # of norms 5 and 2
    optimizer = Lars([weights], lr=0.1, momentum=0.5, weight_decay=0.2, trust_coefficient=0.3)
    optimizer.step()
    # ratio 0.3 * 5 / (2 + 0.2 * 5) = 0.5; gradient and decay (0.6, 2.8); step 0.1 * 0.5 of that
    assert values(weights) == [3 - 0.03, 4 - 0.14]
    optimizer.param_groups[0]["lr"] = 0.2
    with torch.no_grad():
        weights.copy_(torch.tensor([3.0, 4.0]))
    optimizer.step()
    # The same change again at twice the rate, and half of the velocity that was made with the first.
    assert values(weights) == [3 - 0.06 - 0.015, 4 - 0.28 - 0.07]


def test_without_a_coefficient_it_is_plain_momentum() -> None:
    weights = parameter(3.0, 4.0, gradient=(1.0, 2.0))
    optimizer = Lars([weights], lr=0.1, momentum=0.5, trust_coefficient=None)
    optimizer.step()
    optimizer.step()
    assert values(weights) == [3 - 0.1 - 0.15, 4 - 0.2 - 0.3]


def test_the_length_of_the_gradient_does_not_matter() -> None:
    ends = []
    for scale in (1.0, 1000.0):
        weights = parameter(3.0, 4.0, gradient=(scale, 2 * scale))
        Lars([weights], lr=0.1, trust_coefficient=0.2).step()
        assert (torch.tensor([3.0, 4.0]) - weights).norm().item() == pytest.approx(0.1 * 0.2 * 5)
        ends.append(weights.detach())
    assert torch.allclose(*ends, rtol=1e-12)


def test_tensors_of_zeros_and_without_gradient() -> None:
    zeros = parameter(0.0, 0.0, gradient=(1.0, 0.0))
    flat = parameter(3.0, 4.0, gradient=(0.0, 0.0))
    unused = nn.Parameter(torch.ones(2))
    optimizer = Lars([zeros, flat, unused], lr=0.1, momentum=0.5, weight_decay=0.2, trust_coefficient=0.3)
    optimizer.step()
    assert values(zeros) == [-0.1, 0.0]
    assert values(flat) == [3 - 0.1 * 0.2 * 3, 4 - 0.1 * 0.2 * 4]
    assert unused.tolist() == [1, 1]
