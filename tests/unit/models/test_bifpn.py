"""The BiFPN neck: fusion by hand, and which node reads what."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from hvdyolo.models.bifpn import BiFPN, BiFPNLayer, FusionNode, Level, WeightedFusion
from hvdyolo.models.blocks import Conv


def test_fast_normalised_fusion() -> None:
    fusion = WeightedFusion(3)
    assert fusion.weight.tolist() == [1, 1, 1]
    inputs = [torch.tensor([6.0, 0.0]), torch.tensor([0.0, 3.0]), torch.tensor([100.0, 100.0])]
    third = 1 / (3 + 1e-4)
    assert fusion(inputs).tolist() == pytest.approx([106 * third, 103 * third], rel=1e-6)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([2.0, 0.5, -7.0]))  # a negative weight counts as 0
    expected = [6 * 2 / (2.5 + 1e-4), 3 * 0.5 / (2.5 + 1e-4)]
    assert fusion(inputs).tolist() == pytest.approx(expected, rel=1e-6)


def test_epsilon_keeps_a_fusion_of_nothing_finite() -> None:
    fusion = WeightedFusion(2)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([-1.0, 1e-4]))
    assert fusion([torch.tensor(8.0), torch.tensor(8.0)]).item() == pytest.approx(4.0)


def test_a_node_is_a_fusion_and_a_depthwise_separable_convolution() -> None:
    torch.manual_seed(0)
    node = FusionNode(2, 4).eval()
    assert node.depthwise.conv.weight.shape == (4, 1, 3, 3)
    assert node.pointwise.conv.weight.shape == (4, 4, 1, 1)
    first, second = torch.randn(2, 1, 4, 5, 5)
    assert node(first, second).equal(node.pointwise(node.depthwise(node.fusion([first, second]))))


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def halved(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, 2, 1)


def test_a_layer_goes_down_and_up_with_an_extra_edge_between_the_ends() -> None:
    """Four levels, written out; P3 … P6 as in the paper's figure."""
    torch.manual_seed(0)
    layer = BiFPNLayer(4, 3).eval()
    for fusion in (module for module in layer.modules() if isinstance(module, WeightedFusion)):
        nn.init.uniform_(fusion.weight, 0.5, 2)  # so that the order of a node's inputs shows
    p3, p4, p5, p6 = (torch.randn(1, 3, side, side) for side in (16, 8, 4, 2))
    down, up = layer.top_down, layer.bottom_up
    p5_down = down[2](p5, doubled(p6))
    p4_down = down[1](p4, doubled(p5_down))
    p3_out = down[0](p3, doubled(p4_down))
    p4_out = up[0](p4, p4_down, halved(p3_out))
    p5_out = up[1](p5, p5_down, halved(p4_out))
    p6_out = up[2](p6, halved(p5_out))
    found = layer([p3, p4, p5, p6])
    for expected, level in zip((p3_out, p4_out, p5_out, p6_out), found, strict=True):
        assert torch.allclose(level, expected)
    assert [len(node.fusion.weight) for node in [*down, *up]] == [2, 2, 2, 3, 3, 2]


def test_two_levels_have_no_node_between_the_ends() -> None:
    layer = BiFPNLayer(2, 3).eval()
    fine, coarse = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)
    fine_out = layer.top_down[0](fine, doubled(coarse))
    assert torch.allclose(layer([fine, coarse])[1], layer.bottom_up[0](coarse, halved(fine_out)))


def test_the_neck_narrows_its_inputs_and_repeats_its_layers() -> None:
    neck = BiFPN([6, 10, 4], 8, 3).eval()
    levels = [torch.randn(2, channels, side, side) for channels, side in ((6, 8), (10, 4), (4, 2))]
    assert all(isinstance(part, Conv) for part in neck.inputs)
    x = [part(level) for part, level in zip(neck.inputs, levels, strict=True)]
    assert len(neck.layers) == 3
    for layer in neck.layers:
        x = layer(x)
    found = neck(levels)
    assert [tuple(level.shape) for level in found] == [(2, 8, 8, 8), (2, 8, 4, 4), (2, 8, 2, 2)]
    assert all(torch.equal(level, expected) for level, expected in zip(found, x, strict=True))
    assert Level(1)(found) is found[1]
