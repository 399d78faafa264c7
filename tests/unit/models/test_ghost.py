"""Ghost blocks, written out in plain operations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, silu

from hvdyolo.models.blocks import Conv
from hvdyolo.models.ghost import C3Ghost, GhostBottleneck, GhostConv


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 8, 6, 7, dtype=torch.float64)


def prepared(module: nn.Module) -> nn.Module:
    """In evaluation, with statistics that are not 0 and 1."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                nn.init.uniform_(value, 0.2, 0.8)
    return module.double().eval()


def normed(part: Conv, x: Tensor, groups: int = 1) -> Tensor:
    norm = part.bn
    assert isinstance(norm, nn.BatchNorm2d)
    kernel = part.conv.weight.shape[-1]
    y = conv2d(x, part.conv.weight, padding=kernel // 2, groups=groups, stride=part.conv.stride)
    return batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)


def test_ghost_conv_joins_a_convolution_and_a_cheap_one_of_it(x: Tensor) -> None:
    block = prepared(GhostConv(8, 12, 3, 2))
    half = silu(normed(block.cv1, x))
    assert half.shape == (2, 6, 3, 4)
    cheap = silu(normed(block.cv2, half, groups=6))
    assert block.cv2.conv.weight.shape == (6, 1, 5, 5)
    assert torch.allclose(block(x), torch.cat([half, cheap], 1))


def test_ghost_bottleneck_adds_its_input_to_a_second_part_without_activation(x: Tensor) -> None:
    block = prepared(GhostBottleneck(8))
    first = block.conv[0](x)
    assert first.shape[1] == 4
    half = normed(block.conv[2].cv1, first)
    expected = x + torch.cat([half, normed(block.conv[2].cv2, half, groups=4)], 1)
    assert torch.allclose(block(x), expected)


def test_c3_ghost_is_c3_with_ghost_bottlenecks(x: Tensor) -> None:
    block = prepared(C3Ghost(8, 16, 2, False))
    long = block.m[1](block.m[0](block.cv1(x)))
    assert torch.allclose(block(x), block.cv3(torch.cat([long, block.cv2(x)], 1)))
    assert all(isinstance(part, GhostBottleneck) for part in block.m)
    assert len(block.m) == 2
