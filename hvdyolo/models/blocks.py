"""The blocks of YOLOv5 networks. Names of parts are the names of published parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from hvdyolo.ops.batch_norm_silu import batch_norm_silu, can_fuse
from hvdyolo.ops.convolution import Convolution

# As published; torch's own are 1e-5 and 0.1.
NORM_EPS = 1e-3
NORM_MOMENTUM = 0.03


class SiLU(nn.SiLU):
    """The activation, in the memory of its input where no gradient needs that any more.

    Where one does, torch would copy the input first: a twentieth of a training step on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return silu(x, inplace=not torch.is_grad_enabled())


class Conv(nn.Module):
    """Convolution without bias, batch norm, and SiLU if ``activated``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        *,
        activated: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv: nn.Conv2d = Convolution(
            inputs, outputs, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.act: nn.Module = SiLU() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if type(self.act) is SiLU and can_fuse(self.bn, x):
            return batch_norm_silu(x, self.bn)
        return self.act(self.bn(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1×1 and 3×3 convolution, added to the input where shapes allow and ``shortcut`` asks for it."""

    def __init__(
        self, inputs: int, outputs: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(outputs * expansion)
        self.cv1 = Conv(inputs, hidden, 1)
        self.cv2 = Conv(hidden, outputs, 3, groups=groups)
        self.adds = shortcut and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.adds else y  # type: ignore[no-any-return]


class C3(nn.Module):
    """Two branches of ``expansion`` times the width, one through ``repeats`` bottlenecks, then joined."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        self.hidden = int(outputs * expansion)
        self.cv1 = Conv(inputs, self.hidden)
        self.cv2 = Conv(inputs, self.hidden)
        self.cv3 = Conv(2 * self.hidden, outputs)
        self.m = nn.Sequential(
            *(Bottleneck(self.hidden, self.hidden, shortcut, groups, 1.0) for _ in range(repeats))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """Spatial pyramid pooling: one pool applied three times sees windows of three sizes."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = inputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(4 * hidden, outputs)
        self.m = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.cv1(x)]
        for _ in range(3):
            levels.append(self.m(levels[-1]))
        return self.cv2(torch.cat(levels, 1))  # type: ignore[no-any-return]


class SPP(nn.Module):
    """Spatial pyramid pooling by pools side by side, as in networks up to v5.0."""

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = inputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv((1 + len(kernels)) * hidden, outputs)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        start = self.cv1(x)
        return self.cv2(torch.cat([start, *(pool(start) for pool in self.m)], 1))  # type: ignore[no-any-return]


class Focus(nn.Module):
    """The stem up to v5.0: the image as four of half its size in the channels, then a convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv(4 * inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        first_pixels = ((0, 0), (1, 0), (0, 1), (1, 1))  # row, column
        halves = [x[..., row::2, column::2] for row, column in first_pixels]
        return self.conv(torch.cat(halves, 1))  # type: ignore[no-any-return]


class Concat(nn.Module):
    """Joins the channels of its inputs."""

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return torch.cat(inputs, 1)
