"""Ghost blocks (GhostNet, arXiv 1911.11907): half of the features are made cheaply from the others."""

import torch
from torch import Tensor, nn

from hvdyolo.models.blocks import C3, Conv


class GhostConv(nn.Module):
    """A convolution to half the channels, and a 5×5 depthwise one of those for the other half."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, activated: bool = True
    ) -> None:
        super().__init__()
        hidden = outputs // 2
        self.cv1 = Conv(inputs, hidden, kernel, stride, activated=activated)
        self.cv2 = Conv(hidden, hidden, 5, groups=hidden, activated=activated)

    def forward(self, x: Tensor) -> Tensor:
        half = self.cv1(x)
        return torch.cat([half, self.cv2(half)], 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions, the second without activation, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv = nn.Sequential(
            GhostConv(channels, hidden),
            # The place of a depthwise convolution in bottlenecks with a stride; published names count it.
            nn.Identity(),
            GhostConv(hidden, channels, activated=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x  # type: ignore[no-any-return]


class C3Ghost(C3):
    """C3 whose long branch is ghost bottlenecks, which always have their shortcut."""

    def __init__(self, inputs: int, outputs: int, repeats: int = 1, shortcut: bool = True) -> None:
        super().__init__(inputs, outputs, 0)
        self.m = nn.Sequential(*(GhostBottleneck(self.hidden) for _ in range(repeats)))
