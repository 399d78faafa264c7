"""Spatial attention: each pixel of a feature map is weighted by how much it matters."""

import torch
from torch import Tensor, nn


class CbamSpatialAttention(nn.Module):
    """CBAM's (arXiv 1807.06521): one weight a pixel, from the mean and the maximum over its channels."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)
        _start_open(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.conv(summary))


class PointwiseSpatialAttention(nn.Module):
    """YOLOv4's modified SAM (arXiv 2004.10934): one weight a pixel and channel, from the pixel's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        _start_open(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


def _start_open(convolution: nn.Conv2d) -> None:
    """Biases start at 0, the middle of the sigmoid."""
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
