"""The detection head: raw levels in training, boxes in pixels otherwise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Where biases start: as if a 640-pixel image held 8 objects, and each class were seen this often.
_OBJECTS = 8
_IMAGE = 640
_CLASS_SHARE = 0.6


def default_anchors(strides: Sequence[int], count: int) -> Tensor:
    """(levels, ``count``, 2) squares in pixels, to stand in until anchors are fitted to the data.

    Their sides are 2 to 8 strides in geometric progression, around what is published: three a level are 2, 4
    and 8 strides wide. Under an anchor threshold of 4 these take all boxes of an aspect below 8.
    """
    steps = [2 * number / (count - 1) - 1 if count > 1 else 0.0 for number in range(count)]  # -1 … 1
    sides = torch.tensor([4 * 2**step for step in steps])
    return (torch.tensor(strides)[:, None] * sides)[..., None].repeat(1, 1, 2)


class Detect(nn.Module):
    """One 1×1 convolution a level.

    Attributes:
        m: the convolutions, with biases.
        anchors: (levels, anchors, 2) widths and heights in units of the level's stride.
        strides: input pixels a cell, a level.
    """

    anchors: Tensor

    def __init__(self, inputs: Sequence[int], classes: int, anchors: Tensor, strides: Sequence[int]) -> None:
        """``anchors`` are (levels, anchors, 2) in pixels; ``inputs`` the channels of each level."""
        super().__init__()
        self.classes = classes
        self.strides = tuple(strides)
        scale = torch.tensor(self.strides, dtype=anchors.dtype, device=anchors.device)
        self.register_buffer("anchors", anchors / scale[:, None, None])
        outputs = anchors.shape[1] * (5 + classes)
        self.m = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in inputs)
        self._start_biases()

    def forward(self, levels: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Raw levels, each (B, anchors, H, W, 5 + C); in evaluation (B, boxes, 5 + C) before them.

        The latter are cx, cy, w, h in pixels, objectness and class probabilities; boxes are ordered by level,
        anchor, row, column.
        """
        raw = []
        for convolution, level in zip(self.m, levels, strict=True):
            y = convolution(level)
            batch, _, height, width = y.shape
            y = y.view(batch, self.anchors.shape[1], 5 + self.classes, height, width)
            raw.append(y.permute(0, 1, 3, 4, 2))
        if self.training:
            return raw
        return torch.cat([self._decode(level, y) for level, y in enumerate(raw)], 1), raw

    def _decode(self, level: int, raw: Tensor) -> Tensor:
        batch, _, height, width, values = raw.shape
        stride = self.strides[level]
        y = raw.sigmoid()
        rows = torch.arange(height, dtype=y.dtype, device=y.device)
        columns = torch.arange(width, dtype=y.dtype, device=y.device)
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (H, W, 2) x, y
        anchors = (self.anchors[level] * stride).view(1, -1, 1, 1, 2).to(y.dtype)
        centre = (y[..., 0:2] * 2 - 0.5 + cells) * stride
        size = (y[..., 2:4] * 2).square() * anchors
        return torch.cat([centre, size, y[..., 4:]], -1).reshape(batch, -1, values)

    @torch.no_grad()
    def _start_biases(self) -> None:
        """Few cells hold an object: starting from that spares the first epochs' huge losses."""
        for module, stride in zip(self.m, self.strides, strict=True):
            assert isinstance(module, nn.Conv2d)
            assert module.bias is not None
            bias = module.bias.view(self.anchors.shape[1], -1)
            bias[:, 4] += math.log(_OBJECTS / (_IMAGE / stride) ** 2)
            bias[:, 5:] += math.log(_CLASS_SHARE / (self.classes - 0.99999))
