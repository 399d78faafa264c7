"""Weights are compared by what can be summed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hvdyolo.engine.weights_digest import all_agree, first_non_finite, no_digest, weights_digest


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def numbers(*pieces: int) -> torch.Tensor:
    return torch.tensor([1, *pieces, *(piece**2 for piece in pieces)], dtype=torch.float64)


@given(st.integers(1, 5000), st.integers(0, 100))
def test_the_same_weights_agree_on_any_number_of_ranks(ranks: int, seed: int) -> None:
    assert all_agree(ranks * weights_digest(small_model(seed)))


def test_one_bit_of_one_weight_on_one_rank_does_not() -> None:
    model, other = small_model(), small_model()
    with torch.no_grad():
        other[0].weight.view(-1)[7:8].view(torch.int32).bitwise_xor_(1)
    assert not all_agree(999 * weights_digest(model) + weights_digest(other))


def test_one_bit_of_a_second_model_does_not_either() -> None:
    model, average, other = small_model(0), small_model(1), small_model(1)
    assert all_agree(3 * weights_digest(model, average))
    with torch.no_grad():
        other[1].bias[3] = 1e-30
    assert not all_agree(2 * weights_digest(model, average) + weights_digest(model, other))


def test_running_statistics_may_differ() -> None:
    model, other = small_model(), small_model()
    other[1].running_mean.fill_(3)
    assert all_agree(weights_digest(model) + weights_digest(other))


@given(st.lists(st.tuples(*[st.integers(0, 2**16 - 1)] * 4), min_size=1, max_size=6))
def test_ranks_agree_if_and_only_if_all_are_equal(ranks: list[tuple[int, ...]]) -> None:
    assert all_agree(sum(numbers(*rank) for rank in ranks)) == (len(set(ranks)) == 1)


def test_values_around_their_mean_are_not_taken_for_it() -> None:
    assert not all_agree(numbers(9, 5, 5, 5) + numbers(10, 5, 5, 5) + numbers(11, 5, 5, 5))
    # The largest sums of a large job are still exact.
    most = 2**16 - 1
    assert all_agree(100_000 * numbers(most, most, most, most))
    assert not all_agree(100_000 * numbers(most, most, most, most) + numbers(most, most, most, most - 1))


def test_where_nothing_is_compared_nothing_differs() -> None:
    assert all_agree(5 * no_digest())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value: float) -> None:
    model = small_model()
    assert first_non_finite(model) is None
    model[1].running_var[2] = value
    assert first_non_finite(model) == "1.running_var"
