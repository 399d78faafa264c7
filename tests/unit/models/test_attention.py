"""Both forms of spatial attention, by hand on a few numbers."""

import math

import pytest
import torch
from torch import Tensor, nn

from hvdyolo.models.attention import CbamSpatialAttention, PointwiseSpatialAttention


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.fixture
def x() -> Tensor:
    """(1, 2, 1, 2): the left pixel holds 1 and 3, the right one -2 and 4."""
    return torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]])


def test_cbam_weighs_pixels_by_mean_and_maximum_of_their_surroundings(x: Tensor) -> None:
    block = CbamSpatialAttention()
    assert block.conv.weight.shape == (1, 2, 7, 7)
    assert block.conv.bias is not None
    assert block.conv.bias.item() == 0
    with torch.no_grad():
        block.conv.weight.zero_()
        block.conv.weight[0, 0, 3, 3] = 0.5  # mean, here
        block.conv.weight[0, 1, 3, 3] = 0.25  # maximum, here
        block.conv.weight[0, 1, 3, 4] = 0.125  # maximum, one to the right
    # Means 2 and 1, maxima 3 and 4; nothing right of the right pixel.
    left = sigmoid(0.5 * 2 + 0.25 * 3 + 0.125 * 4)
    right = sigmoid(0.5 * 1 + 0.25 * 4)
    expected = torch.tensor([[[[left, -2 * right]], [[3 * left, 4 * right]]]])
    assert torch.allclose(block(x), expected)


def test_cbams_window_is_seven_pixels_and_keeps_the_size() -> None:
    block = CbamSpatialAttention()
    image = torch.rand(2, 5, 9, 11)
    with torch.no_grad():
        nn.init.constant_(block.conv.weight, 0.01)
        before = block(image)
        image[:, :, 0, 0] += 10
        after = block(image)
    assert before.shape == image.shape
    changed = (before != after).any(1)[0].nonzero()
    assert changed.max(0).values.tolist() == [3, 3]


def test_the_kernel_may_be_given() -> None:
    assert CbamSpatialAttention(3).conv.weight.shape == (1, 2, 3, 3)


def test_yolov4s_weighs_each_channel_of_each_pixel_by_that_pixel_alone(x: Tensor) -> None:
    block = PointwiseSpatialAttention(2)
    assert block.conv.bias is not None
    assert block.conv.bias.tolist() == [0, 0]
    with torch.no_grad():
        block.conv.weight.copy_(torch.tensor([[0.5, 0.25], [-1.0, 0.5]])[..., None, None])
    first = [1 * sigmoid(0.5 * 1 + 0.25 * 3), -2 * sigmoid(0.5 * -2 + 0.25 * 4)]
    second = [3 * sigmoid(-1 * 1 + 0.5 * 3), 4 * sigmoid(-1 * -2 + 0.5 * 4)]
    assert torch.allclose(block(x), torch.tensor([[[first], [second]]]))
