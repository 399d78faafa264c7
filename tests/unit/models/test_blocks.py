"""What each block computes, on weights chosen so that the order of its parts shows."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, silu

from hvdyolo.models.blocks import C3, SPP, SPPF, Bottleneck, Concat, Conv, Focus


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 8, 7, 9)


def test_conv_is_convolution_norm_silu(x: Tensor) -> None:
    block = Conv(8, 4, 3, 2).eval()
    norm = block.bn
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.001, 0.002)  # so small that eps matters
    plain = nn.functional.conv2d(x, block.conv.weight, stride=2, padding=1)
    mean, variance = (value[:, None, None] for value in (norm.running_mean, norm.running_var))
    expected = silu((plain - mean) / torch.sqrt(variance + 1e-3))
    assert torch.allclose(block(x), expected, atol=1e-4)
    assert block(x).shape == (2, 4, 4, 5)


def test_the_activation_takes_its_inputs_memory_only_where_no_gradient_is_wanted(x: Tensor) -> None:
    activation, before = Conv(8, 4).act, x.clone()
    assert torch.equal(activation(x), silu(before))
    assert torch.equal(x, before)
    with torch.no_grad():
        y = activation(x)
    assert torch.equal(y, silu(before))
    assert y.data_ptr() == x.data_ptr()


def test_running_statistics_move_by_three_percent(x: Tensor) -> None:
    block = Conv(8, 4)
    plain = block.conv(x)
    block.train()(x)
    assert isinstance(block.bn, nn.BatchNorm2d)
    assert torch.allclose(block.bn.running_mean, 0.03 * plain.mean((0, 2, 3)), atol=1e-6)


def test_conv_with_given_padding_halves_even_sizes() -> None:
    assert Conv(3, 4, 6, 2, 2)(torch.zeros(1, 3, 64, 32)).shape == (1, 4, 32, 16)


def test_bottleneck_adds_only_between_equal_widths_and_if_asked(x: Tensor) -> None:
    for outputs, shortcut, adds in ((8, True, True), (8, False, False), (6, True, False)):
        block = Bottleneck(8, outputs, shortcut).eval()
        branch = block.cv2(block.cv1(x))
        assert torch.allclose(block(x), x + branch if adds else branch, atol=1e-6)
    assert Bottleneck(8, 6).cv1.conv.out_channels == 3
    assert Bottleneck(8, 6, True, 1, 1.0).cv1.conv.out_channels == 6


def test_c3_joins_the_long_branch_before_the_short_one(x: Tensor) -> None:
    block = C3(8, 12, 2, shortcut=False).eval()
    assert block.cv1.conv.out_channels == 6
    assert [(part.cv1.conv.kernel_size, part.adds) for part in block.m] == [((1, 1), False)] * 2
    with torch.no_grad():
        block.cv3.conv.weight[:, 6:] = 0  # only the first half is read
    before = block(x)
    with torch.no_grad():
        block.cv2.conv.weight.zero_()
    assert block(x).equal(before)
    with torch.no_grad():
        block.m[1].cv2.conv.weight.zero_()
    assert not block(x).equal(before)


def test_sppf_sees_windows_of_5_9_and_13(x: Tensor) -> None:
    block = SPPF(8, 6).eval()
    start = block.cv1(x)
    windows = [max_pool2d(start, size, stride=1, padding=size // 2) for size in (5, 9, 13)]
    assert torch.allclose(block(x), block.cv2(torch.cat([start, *windows], 1)), atol=1e-6)


def test_spp_pools_its_start_side_by_side(x: Tensor) -> None:
    block = SPP(8, 6, (3, 7)).eval()
    start = block.cv1(x)
    windows = [max_pool2d(start, size, stride=1, padding=size // 2) for size in (3, 7)]
    assert torch.allclose(block(x), block.cv2(torch.cat([start, *windows], 1)), atol=1e-6)
    assert SPP(8, 6).cv2.conv.in_channels == 4 * 4


def test_focus_takes_every_second_pixel_from_four_corners() -> None:
    block = Focus(1, 4, 1).eval()
    seen = []
    block.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.tensor([[11.0, 12, 13, 14], [21, 22, 23, 24]])  # row, column
    assert block(pixels[None, None]).shape == (1, 4, 1, 2)
    assert seen[0][0, :, 0].tolist() == [[11, 13], [21, 23], [12, 14], [22, 24]]
    assert Focus(3, 4, 3).conv.conv.weight.shape == (4, 12, 3, 3)


def test_groups_and_activation_of_a_convolution(x: Tensor) -> None:
    block = Conv(8, 8, 3, groups=4, activated=False).eval()
    assert block.conv.weight.shape == (8, 2, 3, 3)
    assert block(x).equal(block.bn(block.conv(x)))
    assert Bottleneck(8, 8, True, 4).cv2.conv.groups == 4
    assert C3(8, 12, 1, True, 2, 1 / 3).m[0].cv2.conv.weight.shape == (4, 2, 3, 3)


def test_concat_keeps_the_order(x: Tensor) -> None:
    assert Concat()([x, -x])[:, 8:].equal(-x)
