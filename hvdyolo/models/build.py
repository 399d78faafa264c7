"""Networks from descriptions, and weights files that carry all it takes to use them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hvdyolo.models.blocks import C3, SPPF, Bottleneck, Concat, Conv
from hvdyolo.models.description import Description, Row, nearest, parse_description, read_description
from hvdyolo.models.head import Detect
from hvdyolo.utils.errors import DataError, MismatchError, UsageError
from hvdyolo.utils.files import storage_errors, write_atomically

FORMAT_VERSION = "1"
RESAMPLING = "triangle"
"""The one rule by which images are resized, in training and afterwards: anti-aliased bilinear."""


class DetectionModel(nn.Module):
    """A network of rows; parameters are ``model.<row>.…``, as published.

    Attributes:
        description: the YAML mapping it was built from.
        names: class names.
        strides: input pixels a cell, a level.
        image_size: side of the input it is trained for, pixels.
        data_digest: identity of the packed data it was trained on, or empty.
    """

    def __init__(self, description: dict[str, Any], parsed: Description, names: Sequence[str]) -> None:
        super().__init__()
        self.description = description
        self.names = tuple(names)
        self.image_size = 640
        self.data_digest = ""
        self._sources = tuple(row.sources for row in parsed.rows)
        # Outputs that later rows other than the next one read; all others can be freed at once.
        self._kept = frozenset(source for row in parsed.rows for source in row.sources if source != -1)
        self.model = nn.Sequential(*_build_rows(parsed, len(self.names)))

    @property
    def head(self) -> Detect:
        """The last row."""
        head = self.model[-1]
        assert isinstance(head, Detect)
        return head

    @property
    def strides(self) -> tuple[int, ...]:
        return self.head.strides

    @property
    def anchors_pixels(self) -> Tensor:
        """(levels, anchors, 2) widths and heights in pixels."""
        anchors = self.head.anchors
        return anchors * anchors.new_tensor(self.strides)[:, None, None]

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) in 0..1, sides multiples of the largest stride → what :class:`Detect` gives."""
        outputs: dict[int, Tensor] = {}
        x: Any = images
        for number, (row, sources) in enumerate(zip(self.model, self._sources, strict=True)):
            inputs = [x if source == -1 else outputs[source] for source in sources]
            x = row(inputs if isinstance(row, (Concat, Detect)) else inputs[0])
            if number in self._kept:
                outputs[number] = x
        return x


def build_model(
    description: str | Path, classes: int, *, names: Sequence[str] | None = None
) -> DetectionModel:
    """A network with random weights.

    Args:
        description: a shipped name such as ``yolov5s``, or the path of a YOLOv5 YAML file.
        classes: number of classes; the file's own ``nc`` is not used.
        names: their names; ``class0``, ``class1``, … by default.

    Raises:
        UsageError: there is no such description, or it does not make a network.
    """
    if classes < 1:
        raise UsageError(f"A model needs at least one class, not {classes}.")
    names = [f"class{number}" for number in range(classes)] if names is None else names
    if len(names) != classes:
        raise UsageError(f"{len(names)} names were given for {classes} classes.")
    values = {**read_description(description), "nc": classes}
    return DetectionModel(values, parse_description(values, str(description)), names)


def load_model(path: str | Path) -> DetectionModel:
    """The model in a weights file of :func:`save_model`, in evaluation mode.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged or not a weights file of this program.
        MismatchError: it was written by another version of the format.
    """
    if not Path(path).is_file():
        raise UsageError(f"There is no weights file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
        version = metadata["format_version"]
        if version != FORMAT_VERSION:
            raise MismatchError(f"{path} has weights format {version}, this program reads {FORMAT_VERSION}.")
        model = _restore(metadata, tensors, str(path))
    except (SafetensorError, UsageError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(f"{path} is not a weights file of hvdyolo or is damaged: {reason}.") from None
    return model.eval()


def _restore(metadata: Mapping[str, str], tensors: dict[str, Tensor], name: str) -> DetectionModel:
    values = json.loads(metadata["model_yaml"])
    # On no device: the file's tensors take the place of parameters that would be made for nothing.
    with torch.device("meta"):
        model = DetectionModel(values, parse_description(values, name), json.loads(metadata["names"]))
    model.load_state_dict(tensors, assign=True)
    model.image_size = int(metadata["image_size"])
    model.data_digest = metadata.get("data_digest", "")
    return model


def save_model(model: DetectionModel, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write ``model`` with its description, names, strides, anchors, image size and resampling rule.

    Raises:
        StorageError: it cannot be written; a file there before is untouched.
    """
    metadata = {
        "format_version": FORMAT_VERSION,
        "model_yaml": json.dumps(model.description),
        "names": json.dumps(list(model.names)),
        "strides": json.dumps(list(model.strides)),
        "anchors": json.dumps(model.anchors_pixels.tolist()),
        "image_size": str(model.image_size),
        "resampling": RESAMPLING,
        "data_digest": model.data_digest,
        **(extra or {}),
    }
    # Shared and channels_last tensors are refused by the format.
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not the format's own writing of files, which reports a full disk as damaged content.
    write_atomically(path, save(tensors, metadata))


def _build_rows(description: Description, classes: int) -> list[nn.Module]:
    *body, last = description.rows
    channels: list[int] = []
    strides: list[float] = []
    modules: list[nn.Module] = []
    for number, row in enumerate(body):
        where = f"Model description {description.name}, row {number}"
        inputs = [channels[source] if channels else 3 for source in row.sources]
        input_strides = [strides[source] if strides else 1.0 for source in row.sources]
        module, outputs, factor = _build_row(description, row, inputs, input_strides, where)
        modules.append(module)
        channels.append(outputs)
        strides.append(input_strides[0] * factor)
    where = f"Model description {description.name}, row {len(body)}"
    if last.module != "Detect":
        raise UsageError(f"{where}: the last row must be Detect, not {last.module}.")
    inputs, input_strides = [channels[n] for n in last.sources], [strides[n] for n in last.sources]
    return [*modules, _build_head(description, classes, inputs, input_strides, where)]


def _build_row(
    description: Description, row: Row, inputs: list[int], strides: list[float], where: str
) -> "_Built":
    if row.module not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise UsageError(
            f"{where}: unknown module '{row.module}'{nearest(row.module, _BUILDERS)}; known are {known}, and "
            "Detect as the last row."
        )
    if len(inputs) > 1 and row.module not in _SEVERAL_INPUTS:
        raise UsageError(
            f"{where}: {row.module} has one input, not {len(inputs)}; join them by Concat first."
        )
    if len(set(strides)) != 1:
        raise UsageError(f"{where}: its inputs have different sizes (strides {strides}).")
    repeats = row.repeats
    if repeats > 1:
        repeats = max(round(repeats * description.depth_multiple), 1)
    try:
        return _BUILDERS[row.module](row, inputs, repeats, description)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError):
        raise UsageError(f"{where}: arguments {list(row.arguments)} do not fit {row.module}.") from None


def _build_head(
    description: Description, classes: int, inputs: list[int], strides: list[float], where: str
) -> Detect:
    if len(inputs) != len(description.anchors):
        raise UsageError(f"{where}: {len(inputs)} levels but anchors for {len(description.anchors)}.")
    if any(not stride.is_integer() for stride in strides):
        raise UsageError(f"{where}: a level is larger than the image (strides {strides}).")
    anchors = torch.tensor(description.anchors).view(len(inputs), -1, 2)
    return Detect(inputs, classes, anchors, [int(stride) for stride in strides])


_Built = tuple[nn.Module, int, float]
"""A module, its output channels, and the factor by which it changes the stride."""


def _scaled(channels: Any, description: Description) -> int:
    """Channels times width, rounded up to a multiple of eight."""
    return math.ceil(int(channels) * description.width_multiple / 8) * 8


def _build_conv(row: Row, inputs: list[int], repeats: int, description: Description) -> _Built:
    outputs = _scaled(row.arguments[0], description)
    stride = row.arguments[2] if len(row.arguments) > 2 else 1
    return _repeat(Conv, inputs[0], outputs, row.arguments[1:], repeats), outputs, stride**repeats


def _build_bottleneck(row: Row, inputs: list[int], repeats: int, description: Description) -> _Built:
    outputs = _scaled(row.arguments[0], description)
    return _repeat(Bottleneck, inputs[0], outputs, row.arguments[1:], repeats), outputs, 1


def _build_c3(row: Row, inputs: list[int], repeats: int, description: Description) -> _Built:
    outputs = _scaled(row.arguments[0], description)
    return C3(inputs[0], outputs, repeats, *row.arguments[1:]), outputs, 1


def _build_sppf(row: Row, inputs: list[int], repeats: int, description: Description) -> _Built:
    outputs = _scaled(row.arguments[0], description)
    return SPPF(inputs[0], outputs, *row.arguments[1:]), outputs, 1


def _build_upsample(row: Row, inputs: list[int], repeats: int, description: Description) -> _Built:
    size, factor, mode = row.arguments
    if size is not None:
        raise ValueError("a fixed size would fit one image size only")
    return nn.Upsample(None, factor, mode), inputs[0], 1 / factor


def _build_concat(row: Row, inputs: list[int], repeats: int, description: Description) -> _Built:
    if row.arguments not in ((), (1,)):
        raise ValueError("only channels can be joined")
    return Concat(), sum(inputs), 1


def _repeat(
    module: Callable[..., nn.Module], inputs: int, outputs: int, arguments: Sequence[Any], repeats: int
) -> nn.Module:
    """Modules that do not repeat inside themselves become a sequence."""
    if repeats == 1:
        return module(inputs, outputs, *arguments)
    firsts = [inputs] + [outputs] * (repeats - 1)
    return nn.Sequential(*(module(first, outputs, *arguments) for first in firsts))


_BUILDERS: dict[str, Callable[[Row, list[int], int, Description], _Built]] = {
    "Conv": _build_conv,
    "Bottleneck": _build_bottleneck,
    "C3": _build_c3,
    "SPPF": _build_sppf,
    "nn.Upsample": _build_upsample,
    "Concat": _build_concat,
}
_SEVERAL_INPUTS = ("Concat",)
