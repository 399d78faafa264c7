"""The BiFPN neck (EfficientDet, arXiv 1911.09070): levels of one width, fused again and again both ways."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from hvdyolo.models.blocks import Conv

_EPSILON = 1e-4


class WeightedFusion(nn.Module):
    """Fast normalised fusion: Σ w·x / (ε + Σ w), with one learned w ≥ 0 an input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        weight = self.weight.relu()
        shares = weight / (_EPSILON + weight.sum())
        fused = shares[0] * inputs[0]
        for share, x in zip(shares[1:], inputs[1:], strict=True):
            fused = fused + share * x
        return fused


class FusionNode(nn.Module):
    """A fusion of maps of one size, then a depthwise separable 3×3 convolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fusion = WeightedFusion(inputs)
        self.depthwise = Conv(width, width, 3, groups=width)
        self.pointwise = Conv(width, width)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(self.fusion(inputs)))  # type: ignore[no-any-return]


class BiFPNLayer(nn.Module):
    """From the coarsest level down to the finest, and back up.

    On the way up a level between the ends is fused from three: its input, which the extra edge brings, its
    node on the way down, and the finer level.
    """

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(FusionNode(2, width) for _ in range(levels - 1))
        self.bottom_up = nn.ModuleList(
            FusionNode(3 if level < levels - 1 else 2, width) for level in range(1, levels)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Finest first, each half the size of the one before; so are the outputs."""
        down = [levels[-1]]
        for node, level in zip(reversed(self.top_down), reversed(levels[:-1]), strict=True):
            down.insert(0, node(level, interpolate(down[0], scale_factor=2.0, mode="nearest")))
        outputs = [down[0]]
        for number, node in enumerate(self.bottom_up, 1):
            finer = max_pool2d(outputs[-1], 3, stride=2, padding=1)
            inner = number < len(levels) - 1
            inputs = [levels[number], down[number], finer] if inner else [levels[number], finer]
            outputs.append(node(*inputs))
        return outputs


class BiFPN(nn.Module):
    """``repeats`` layers over levels that 1×1 convolutions bring to one width."""

    def __init__(self, inputs: Sequence[int], width: int, repeats: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(Conv(channels, width) for channels in inputs)
        self.layers = nn.Sequential(*(BiFPNLayer(len(inputs), width) for _ in range(repeats)))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        narrowed = [convolution(level) for convolution, level in zip(self.inputs, levels, strict=True)]
        return self.layers(narrowed)  # type: ignore[no-any-return]


class Level(nn.Module):
    """One of the levels of a neck that gives several."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return levels[self.number]
