"""The modules that a description may name, and what a row of each makes of its inputs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hvdyolo.models.attention import CbamSpatialAttention, PointwiseSpatialAttention
from hvdyolo.models.bifpn import BiFPN, Level, WeightedFusion
from hvdyolo.models.blocks import C3, SPP, SPPF, Bottleneck, Concat, Conv, Focus
from hvdyolo.models.description import Row, nearest
from hvdyolo.models.ghost import C3Ghost, GhostConv
from hvdyolo.models.transformer import C3TR
from hvdyolo.utils.errors import UsageError

_LARGEST_STRIDE = 1 << 20


@dataclass(frozen=True)
class FeatureMap:
    """What a row gives: channels, and input pixels a cell."""

    channels: int
    stride: float


FeatureMaps = tuple[FeatureMap, ...]


@dataclass(frozen=True)
class BuiltRow:
    """A module and its one output, or the levels that a neck gives."""

    module: nn.Module
    outputs: FeatureMaps


@dataclass(frozen=True)
class _Plan:
    """What a row's module is built from; ``repeats`` are already scaled."""

    inputs: FeatureMaps
    arguments: tuple[Any, ...]
    repeats: int
    width_multiple: float

    @property
    def channels(self) -> int:
        return self.inputs[0].channels

    @property
    def stride(self) -> float:
        return self.inputs[0].stride

    @property
    def width(self) -> int:
        """Channels that the first argument asks for, times width, rounded up to a multiple of eight."""
        return math.ceil(int(self.arguments[0]) * self.width_multiple / 8) * 8


class _Mistake(ValueError):
    """Why a row makes no module, in words that follow its number."""


def build_row(
    row: Row, inputs: Sequence[FeatureMaps], depth_multiple: float, width_multiple: float, where: str
) -> BuiltRow:
    """The module of ``row``, which ``where`` names in messages.

    Raises:
        UsageError: says what is wrong with the row.
    """
    if row.module not in _BUILDERS:
        raise UsageError(
            f"{where}: unknown module '{row.module}'{nearest(row.module, _BUILDERS)}; known are "
            f"{', '.join(_BUILDERS)}, and Detect as the last row."
        )
    if len(inputs) > 1 and row.module not in _SEVERAL_INPUTS:
        raise UsageError(
            f"{where}: {row.module} has one input, not {len(inputs)}; join them by Concat first."
        )
    if row.repeats > 1 and row.module in _NOT_REPEATED:
        raise UsageError(
            f"{where}: {row.module} cannot be repeated; give it 1 in the place of {row.repeats}."
        )
    if row.module == "Level":
        maps = inputs[0]
    else:
        maps = tuple(one_map(outputs, where) for outputs in inputs)
    repeats = max(round(row.repeats * depth_multiple), 1) if row.repeats > 1 else 1
    try:
        built = _BUILDERS[row.module](_Plan(maps, row.arguments, repeats, width_multiple))
        if any(output.channels < 1 or not 0 < output.stride < _LARGEST_STRIDE for output in built.outputs):
            raise ValueError("nothing would come out")
    except _Mistake as mistake:
        raise UsageError(f"{where}: {mistake}.") from None
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError):
        raise misfit(row, where) from None
    return built


def misfit(row: Row, where: str) -> UsageError:
    """The error of a row whose arguments are wrong in a way that is not told apart."""
    return UsageError(
        f"{where}: arguments {list(row.arguments)} do not fit {row.module}; docs/models.md tells what do."
    )


def one_map(outputs: FeatureMaps, where: str) -> FeatureMap:
    """The only output of a row.

    Raises:
        UsageError: it has several.
    """
    if len(outputs) > 1:
        raise UsageError(f"{where}: its input gives {len(outputs)} levels; take one by a row Level first.")
    return outputs[0]


def reads_several(module: nn.Module) -> bool:
    """Whether the module is called with a list, also of one input."""
    return isinstance(module, (Concat, WeightedFusion, BiFPN))


def _in_sequence(module: Callable[..., nn.Module], *, has_stride: bool = False) -> "_Builder":
    """For modules that do not repeat inside themselves; of their arguments the third may be a stride."""

    def build(plan: _Plan) -> BuiltRow:
        stride = plan.arguments[2] if has_stride and len(plan.arguments) > 2 else 1
        firsts = [plan.channels] + [plan.width] * (plan.repeats - 1)
        modules = [module(first, plan.width, *plan.arguments[1:]) for first in firsts]
        made = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        return BuiltRow(made, (FeatureMap(plan.width, plan.stride * stride**plan.repeats),))

    return build


def _repeats_inside(module: Callable[..., nn.Module]) -> "_Builder":
    def build(plan: _Plan) -> BuiltRow:
        made = module(plan.channels, plan.width, plan.repeats, *plan.arguments[1:])
        return BuiltRow(made, (FeatureMap(plan.width, plan.stride),))

    return build


def _same_shape(module: Callable[..., nn.Module]) -> "_Builder":
    def build(plan: _Plan) -> BuiltRow:
        return BuiltRow(module(*plan.arguments), plan.inputs)

    return build


def _build_depthwise(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> Conv:
    return Conv(inputs, outputs, kernel, stride, groups=math.gcd(inputs, outputs))


def _build_focus(plan: _Plan) -> BuiltRow:
    stride = 2 * (plan.arguments[2] if len(plan.arguments) > 2 else 1)
    made = Focus(plan.channels, plan.width, *plan.arguments[1:])
    return BuiltRow(made, (FeatureMap(plan.width, plan.stride * stride),))


def _build_sam_v4(plan: _Plan) -> BuiltRow:
    return BuiltRow(PointwiseSpatialAttention(plan.channels, *plan.arguments), plan.inputs)


def _build_upsample(plan: _Plan) -> BuiltRow:
    size, factor, mode = plan.arguments
    if size is not None:
        raise _Mistake("a fixed size would fit one image size only; write nn.Upsample [None, 2, nearest]")
    return BuiltRow(nn.Upsample(None, factor, mode), (FeatureMap(plan.channels, plan.stride / factor),))


def _build_max_pool(plan: _Plan) -> BuiltRow:
    kernel, *others = plan.arguments
    stride = others[0] if others else kernel
    return BuiltRow(nn.MaxPool2d(kernel, *others), (FeatureMap(plan.channels, plan.stride * stride),))


def _build_concat(plan: _Plan) -> BuiltRow:
    if plan.arguments not in ((), (1,)):
        raise _Mistake(f"arguments {list(plan.arguments)} do not fit Concat, which joins channels only: [1]")
    channels = sum(level.channels for level in plan.inputs)
    return BuiltRow(Concat(), (FeatureMap(channels, _common_stride(plan)),))


def _build_fusion(plan: _Plan) -> BuiltRow:
    channels = [level.channels for level in plan.inputs]
    if len(set(channels)) != 1:
        raise _Mistake(f"its inputs have different widths (channels {channels}); bring them to one by Conv")
    made = WeightedFusion(len(plan.inputs), *plan.arguments)
    return BuiltRow(made, (FeatureMap(plan.channels, _common_stride(plan)),))


def _build_bifpn(plan: _Plan) -> BuiltRow:
    strides = [level.stride for level in plan.inputs]
    if len(strides) < 2 or strides != [strides[0] * 2**number for number in range(len(strides))]:
        raise _Mistake(
            "BiFPN reads two or more levels, finest first, each half the size of the one before it "
            f"(strides {strides})"
        )
    (_,) = plan.arguments
    made = BiFPN([level.channels for level in plan.inputs], plan.width, plan.repeats)
    return BuiltRow(made, tuple(FeatureMap(plan.width, stride) for stride in strides))


def _build_level(plan: _Plan) -> BuiltRow:
    (number,) = plan.arguments
    if type(number) is not int or not 0 <= number < len(plan.inputs):
        raise _Mistake(f"there is no level {number}; they are 0 … {len(plan.inputs) - 1}, finest first")
    if len(plan.inputs) == 1:
        raise _Mistake("Level reads a row of several levels, such as BiFPN")
    return BuiltRow(Level(number), (plan.inputs[number],))


def _common_stride(plan: _Plan) -> float:
    strides = [level.stride for level in plan.inputs]
    if len(set(strides)) != 1:
        raise _Mistake(f"its inputs have different sizes (strides {strides})")
    return plan.stride


_Builder = Callable[[_Plan], BuiltRow]

_BUILDERS: dict[str, _Builder] = {
    "Conv": _in_sequence(Conv, has_stride=True),
    "DWConv": _in_sequence(_build_depthwise, has_stride=True),
    "GhostConv": _in_sequence(GhostConv, has_stride=True),
    "Bottleneck": _in_sequence(Bottleneck),
    "C3": _repeats_inside(C3),
    "C3Ghost": _repeats_inside(C3Ghost),
    "C3TR": _repeats_inside(C3TR),
    "SPP": _in_sequence(SPP),
    "SPPF": _in_sequence(SPPF),
    "Focus": _build_focus,
    "Concat": _build_concat,
    "nn.Upsample": _build_upsample,
    "nn.MaxPool2d": _build_max_pool,
    "nn.Identity": _same_shape(nn.Identity),
    "BiFPN": _build_bifpn,
    "Level": _build_level,
    "WeightedFusion": _build_fusion,
    "sam_cbam": _same_shape(CbamSpatialAttention),
    "sam_v4": _build_sam_v4,
}
_SEVERAL_INPUTS = ("Concat", "WeightedFusion", "BiFPN")
_NOT_REPEATED = (
    "Focus", "Concat", "nn.Upsample", "nn.MaxPool2d", "nn.Identity", "Level", "WeightedFusion", "sam_cbam",
    "sam_v4",
)  # fmt: skip
