"""Networks from descriptions, and weights files that carry all it takes to use them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hvdyolo.models.description import Description, parse_description, read_description
from hvdyolo.models.head import Detect, default_anchors
from hvdyolo.models.rows import BuiltRow, FeatureMap, FeatureMaps, build_row, misfit, one_map, reads_several
from hvdyolo.models.shipped import shipped_names
from hvdyolo.utils.errors import DataError, MismatchError, UsageError
from hvdyolo.utils.files import storage_errors, write_atomically

FORMAT_VERSION = "1"
_COCO_CLASSES = 80
MOST_LEVELS = 5
"""The loss has balances for so many."""
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
        maps: what each row before the head gives.
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
        built = _build_body(parsed)
        self.maps = tuple(row.outputs for row in built)
        head = _build_head(parsed, len(self.names), self.maps)
        self.model = nn.Sequential(*(row.module for row in built), head)

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
    def size_multiple(self) -> int:
        """What sides of images must be multiples of: the largest stride, of inner maps too."""
        inner = [output.stride for outputs in self.maps for output in outputs]
        return max(*self.strides, *(int(stride) for stride in inner))

    @property
    def anchors_pixels(self) -> Tensor:
        """(levels, anchors, 2) widths and heights in pixels."""
        anchors = self.head.anchors
        return anchors * anchors.new_tensor(self.strides)[:, None, None]

    def set_anchors(self, pixels: Tensor) -> None:
        """Replace the anchors by (levels, anchors, 2) widths and heights in pixels."""
        anchors = self.head.anchors
        strides = pixels.new_tensor(self.strides)[:, None, None]
        anchors.copy_((pixels / strides).to(anchors))

    def train(self, mode: bool = True) -> "DetectionModel":
        """As torch's, but norms with frozen weights stay in evaluation mode and keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) in 0..1, sides multiples of ``size_multiple`` → what :class:`Detect` gives."""
        outputs: dict[int, Any] = {}
        x: Any = images
        for number in range(len(self.model)):
            x = self.run_row(number, x, outputs)
        return x

    def run_row(self, number: int, previous: Any, outputs: dict[int, Any]) -> Any:
        """What row ``number`` makes of the row before it and of ``outputs``, where it is put if kept."""
        inputs = [previous if source == -1 else outputs[source] for source in self._sources[number]]
        row = self.model[number]
        y = row(inputs if row is self.model[-1] or reads_several(row) else inputs[0])
        if number in self._kept:
            outputs[number] = y
        return y


def build_model(
    description: str | Path, classes: int | None = None, *, names: Sequence[str] | None = None
) -> DetectionModel:
    """A network with random weights.

    Args:
        description: a shipped name such as ``yolov5s``, ``yolov5m6`` or ``yolov5n-p2`` (docs/models.md), or
            the path of a YOLOv5 YAML file.
        classes: number of classes; by default as many as ``names``, else the description's ``nc``.
        names: their names; ``class0``, ``class1``, … by default.

    Raises:
        UsageError: there is no such description, or it does not make a network.
    """
    values = read_description(description)
    if classes is None:
        classes = values.get("nc", _COCO_CLASSES) if names is None else len(names)
    if type(classes) is not int or classes < 1:
        raise UsageError(f"A model needs at least one class, not {classes}.")
    names = [f"class{number}" for number in range(classes)] if names is None else names
    if len(names) != classes:
        raise UsageError(f"{len(names)} names were given for {classes} classes.")
    values = {**values, "nc": classes}
    parsed = parse_description(values, str(description))
    if str(description) not in shipped_names():
        check_sizes(values, parsed)
    return DetectionModel(values, parsed, names)


@torch.no_grad()
def check_sizes(values: dict[str, Any], parsed: Description) -> None:
    """Run an image without content through the network: every map must be as large as its stride says.

    Raises:
        UsageError: names the row that does not fit.
    """
    with torch.device("meta"):
        model = DetectionModel(values, parsed, ["class0"]).eval()
        side = 4 * model.size_multiple
        x: Any = torch.empty(1, 3, side, side)
    outputs: dict[int, Any] = {}
    for number, maps in enumerate(model.maps):
        where, row = _where(parsed, number), parsed.rows[number]
        try:
            x = model.run_row(number, x, outputs)
        except (RuntimeError, TypeError, ValueError):
            raise misfit(row, where) from None
        for y, output in zip(x if len(maps) > 1 else [x], maps, strict=True):
            cells = side / output.stride
            if tuple(y.shape) != (1, output.channels, cells, cells):
                raise UsageError(
                    f"{where}: {side} x {side} pixels become {y.shape[2]} x {y.shape[3]} cells, and stride "
                    f"{output.stride:g} would be {cells:g} x {cells:g}; check kernel, stride and padding."
                )


def load_model(path: str | Path) -> DetectionModel:
    """The model in a weights file of :func:`save_model`, in evaluation mode.

    Raises:
        UsageError: there is no such file, or it is one to import first.
        DataError: it is damaged or not a weights file of this program.
        MismatchError: it was written by another version of the format.
    """
    if not Path(path).is_file():
        raise UsageError(f"There is no weights file {path}.")
    if Path(path).suffix in (".pt", ".pth"):
        raise UsageError(f"{path} is not safetensors; import it first: hvdyolo weights import {path} FILE.")
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
    anchors = model.anchors_pixels
    metadata = {
        "format_version": FORMAT_VERSION,
        # The description may have had others, or none: these are what was learnt with.
        "model_yaml": json.dumps({**model.description, "anchors": anchors.flatten(1).tolist()}),
        "names": json.dumps(list(model.names)),
        "strides": json.dumps(list(model.strides)),
        "anchors": json.dumps(anchors.tolist()),
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


def _build_body(description: Description) -> list[BuiltRow]:
    """All rows but the head."""
    built: list[BuiltRow] = []
    for number, row in enumerate(description.rows[:-1]):
        # The first row's input, -1 too, is the image.
        inputs = [built[source].outputs if built else (FeatureMap(3, 1.0),) for source in row.sources]
        where = _where(description, number)
        built.append(build_row(row, inputs, description.depth_multiple, description.width_multiple, where))
    return built


def _build_head(description: Description, classes: int, maps: Sequence[FeatureMaps]) -> Detect:
    row = description.rows[-1]
    where = _where(description, len(description.rows) - 1)
    if row.module != "Detect":
        raise UsageError(f"{where}: the last row must be Detect, not {row.module}.")
    if row.repeats != 1 or (row.arguments and row.arguments[1:] not in ((), ("anchors",))):
        raise UsageError(
            f"{where}: Detect is given once, with [nc, anchors]; write numbers under the keys nc and anchors."
        )
    levels = [one_map(maps[source], where) for source in row.sources]
    if len(levels) > MOST_LEVELS:
        raise UsageError(f"{where}: {len(levels)} levels are more than the {MOST_LEVELS} the loss is for.")
    if any(not level.stride.is_integer() for level in levels):
        raise UsageError(
            f"{where}: a level is larger than the image (strides {[level.stride for level in levels]})."
        )
    strides = [int(level.stride) for level in levels]
    if isinstance(description.anchors, int):
        anchors = default_anchors(strides, description.anchors)
    else:
        if len(levels) != len(description.anchors):
            raise UsageError(f"{where}: {len(levels)} levels but anchors for {len(description.anchors)}.")
        anchors = torch.tensor(description.anchors).view(len(levels), -1, 2)
    return Detect([level.channels for level in levels], classes, anchors, strides)


def _where(description: Description, number: int) -> str:
    return f"Model description {description.name}, row {number}"
