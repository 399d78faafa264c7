"""The transformer block, written out in plain operations."""

import math

import torch
from torch import Tensor

from hvdyolo.models.transformer import C3TR, TransformerBlock, TransformerLayer


def attend(layer: TransformerLayer, tokens: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (L, B, C) tokens, one image and one head at a time."""
    _, batch, channels = tokens.shape
    weights = layer.ma.in_proj_weight.split(channels)
    biases = layer.ma.in_proj_bias.split(channels)
    maps = (layer.q.weight, layer.k.weight, layer.v.weight)
    query, key, value = (
        tokens @ first.T @ second.T + bias for first, second, bias in zip(maps, weights, biases, strict=True)
    )
    joined = torch.empty_like(tokens)
    width = channels // heads
    for image in range(batch):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, image, part] @ key[:, image, part].T / math.sqrt(width)
            joined[:, image, part] = scores.softmax(-1) @ value[:, image, part]
    return joined @ layer.ma.out_proj.weight.T + layer.ma.out_proj.bias


def test_layer_is_attention_and_two_linear_maps_each_added() -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(8, 4).double()
    torch.nn.init.uniform_(layer.ma.in_proj_bias)
    torch.nn.init.uniform_(layer.ma.out_proj.bias)
    tokens = torch.randn(5, 2, 8, dtype=torch.float64)
    x = attend(layer, tokens, 4) + tokens
    expected = x @ layer.fc1.weight.T @ layer.fc2.weight.T + x
    for mode in (True, False):
        assert torch.allclose(layer.train(mode)(tokens), expected)


def test_block_reads_cells_row_by_row_and_adds_a_linear_map_first() -> None:
    torch.manual_seed(1)
    block = TransformerBlock(8, 4, 2).double().eval()
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    tokens = torch.stack([x[:, :, row, column] for row in range(2) for column in range(3)])  # (6, B, C)
    tokens = tokens + tokens @ block.linear.weight.T + block.linear.bias
    for layer in block.tr:
        tokens = layer(tokens)
    expected = torch.stack([torch.stack([tokens[3 * row + c] for c in range(3)], -1) for row in range(2)], -2)
    assert torch.allclose(block(x), expected)


def test_c3tr_is_c3_with_a_transformer_of_its_repeats() -> None:
    torch.manual_seed(2)
    block = C3TR(8, 16, 3).double().eval()
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64)
    assert torch.allclose(block(x), block.cv3(torch.cat([block.m(block.cv1(x)), block.cv2(x)], 1)))
    assert len(block.m.tr) == 3
    assert block.m.tr[0].ma.num_heads == 4
