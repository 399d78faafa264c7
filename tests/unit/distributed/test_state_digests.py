"""Which ranks hold other tensors than the rest, and who is named for it."""

import pytest
import torch

from hvdyolo.distributed.state_digests import check_digests, state_digests
from hvdyolo.utils.errors import InternalError


def rank(host: str, **values: float) -> tuple[str, dict[str, bytes]]:
    return host, state_digests({name: torch.tensor([value]) for name, value in values.items()})


def test_the_few_that_differ_from_the_many_are_named() -> None:
    ranks = [rank("a", x=1, y=2), rank("a", x=1, y=3), rank("b", x=1, y=2), rank("b", x=1, y=2)]
    with pytest.raises(InternalError) as caught:
        check_digests(ranks)
    assert "disagree about y: rank 1 on a against rank 0 on a and 2 equal to it" in str(caught.value)
    assert caught.value.agreed


def test_of_many_that_differ_some_are_named() -> None:
    with pytest.raises(
        InternalError, match=r"x: rank 1 on h, .*rank 8 on h and 11 more against rank 0 on h;"
    ):
        check_digests([rank("h", x=number) for number in range(20)])


def test_equal_bits_are_equal_and_equal_numbers_need_not_be() -> None:
    check_digests([rank("a", x=0.0, y=float("nan")), rank("b", x=0.0, y=float("nan"))])
    with pytest.raises(InternalError, match="about x"):
        check_digests([rank("a", x=0.0), rank("b", x=-0.0)])


def test_memory_layout_is_no_difference() -> None:
    weight = torch.rand(2, 3, 4, 4)
    other = weight.to(memory_format=torch.channels_last)
    assert state_digests({"x": weight}) == state_digests({"x": other})
