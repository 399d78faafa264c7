"""Published YOLOv5 weights (v5.0 to v7.0) as models: what a ``.pt`` file holds, without its code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvdyolo.models.blocks import NORM_EPS
from hvdyolo.models.build import DetectionModel, load_model
from hvdyolo.models.description import known_keys, parse_description
from hvdyolo.models.foreign_file import ForeignFile
from hvdyolo.models.foreign_pickle import StandIn
from hvdyolo.utils.errors import DataError, UsageError

_SUFFIXES = (".pt", ".pth")

# A buffer of the head up to v6.0 that repeats its anchors.
_DROPPED = "anchor_grid"

# More than any checkpoint has; containers may hold each other, and walking them would never end.
_MOST_PARTS = 100_000
_MOST_DEPTH = 50
_LONGEST_NAME = 300
_LARGEST_SIZE = 8192


def read_weights(path: Path) -> DetectionModel:
    """The model in a weights file of this program or in a published ``.pt`` file.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, harmful, or no YOLOv5 detection model.
        MismatchError: it was written by another version of the format.
    """
    return read_published(path) if path.suffix in _SUFFIXES else load_model(path)


def read_published(path: Path) -> DetectionModel:
    """The model in a published ``.pt`` file, in evaluation mode and single precision.

    Of a training checkpoint it is the moving average, as published figures are. Its image size is what the
    file tells, or else 1280 for networks with stride 64 and 640 for others, as published.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, harmful, or no YOLOv5 detection model.
    """
    with ForeignFile(path) as file:
        try:
            return _read_model(file)
        except UsageError as error:
            # It quotes the file, which may hold anything, terminal commands too.
            told = "".join(c if c.isprintable() else "?" for c in str(error))[:500]
            raise DataError(f"{path} cannot be imported: {told}") from None


def _read_model(file: ForeignFile) -> DetectionModel:
    network = _find_network(file)
    parts = dict(_walk(network, file.name))
    tensors = {name: value for part in parts for name, value in _tensors(part, parts[part])}
    model = _build(file, network, len(parts))
    _check_modules(file.name, parts)
    stride = network.state.get("stride")
    if stride is not None and (
        file.shape(stride) != (len(model.strides),) or tuple(file.tensor(stride).tolist()) != model.strides
    ):
        raise DataError(f"{file.name} cannot be imported: its strides are not {model.strides}.")
    model.load_state_dict(_read_tensors(file, model, tensors), assign=True)
    published = 1280 if max(model.strides) >= 64 else 640
    model.image_size = _trained_size(file.content, model.size_multiple) or published
    return model.eval()


def _find_network(file: ForeignFile) -> StandIn:
    """The model itself: of a checkpoint its moving average, if there is one."""
    content = file.content
    if isinstance(content, dict):
        content = content.get("model") if content.get("ema") is None else content["ema"]
    if not isinstance(content, StandIn) or "_modules" not in content.state:
        raise DataError(
            f"{file.name} cannot be imported: it holds no model of YOLOv5; give a file as YOLOv5 saves it."
        )
    return content


def _walk(network: StandIn, name: str) -> Iterator[tuple[str, StandIn]]:
    """All modules by their names, from the outermost."""
    waiting = [("", network)]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return
        prefix, module = waiting.pop()
        if len(prefix) > _LONGEST_NAME:
            break
        yield prefix, module
        children = module.state.get("_modules")
        for child, part in children.items() if isinstance(children, dict) else ():
            if isinstance(part, StandIn):
                waiting.append((f"{prefix}{child}.", part))
    raise DataError(f"{name} is refused: its modules hold each other without end.")


def _tensors(prefix: str, module: StandIn) -> Iterator[tuple[str, Any]]:
    for kind in ("_parameters", "_buffers"):
        values = module.state.get(kind)
        for name, value in values.items() if isinstance(values, dict) else ():
            if value is not None and name != _DROPPED:
                yield f"{prefix}{name}", value


def _build(file: ForeignFile, network: StandIn, modules: int) -> DetectionModel:
    """The network without its weights, on no device."""
    values = _plain(network.state.get("yaml"), file.name)
    names = _class_names(_plain(network.state.get("names"), file.name))
    if not isinstance(values, dict) or not names:
        raise DataError(f"{file.name} cannot be imported: its model has no description or no class names.")
    where = f"in {Path(file.name).name}"
    values = {**known_keys(values, where), "nc": len(names)}
    description = parse_description(values, where)
    # Each takes memory when it is built, and each has to be in the file.
    if sum(row.repeats for row in description.rows) * max(description.depth_multiple, 1) > 2 * modules:
        raise DataError(f"{file.name} is refused: its description is of a much larger network.")
    with torch.device("meta"):
        return DetectionModel(values, description, names)


def _read_tensors(file: ForeignFile, model: DetectionModel, found: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of ``model`` in single precision. Nothing is read before all of it is known to fit."""
    expected = model.state_dict()
    for name in [*expected, *found]:
        if name not in found or name not in expected:
            there = "missing" if name not in found else "not in its description"
            raise DataError(f"{file.name} cannot be imported: its tensor {name[:100]!r} is {there}.")
        if file.shape(found[name]) != tuple(expected[name].shape):
            raise DataError(
                f"{file.name} cannot be imported: {name} has shape {file.shape(found[name])}, and its "
                f"description gives {tuple(expected[name].shape)}."
            )
    if sum(value.numel() for value in expected.values()) > file.bytes:
        raise DataError(f"{file.name} is refused: it is too small for the tensors that it claims to hold.")
    return {name: _single(file.tensor(value)) for name, value in found.items()}


def _check_modules(name: str, parts: dict[str, StandIn]) -> None:
    """What neither names nor shapes of tensors show."""
    for prefix, module in parts.items():
        kind = module.origin.rpartition(".")[2]
        if kind == "BatchNorm2d" and module.state.get("eps") != NORM_EPS:
            raise DataError(f"{name} cannot be imported: {prefix[:-1]} has another eps than {NORM_EPS}.")
        if prefix.endswith(".act.") and kind not in ("SiLU", "Identity"):
            raise DataError(
                f"{name} cannot be imported: {prefix[:-1]} is {kind}, and only SiLU is supported."
            )


def _class_names(names: Any) -> list[str]:
    """A list, or since v6.2 a mapping of numbers; empty if it is neither, or not of printable words."""
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    valid = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    return list(names) if valid else []


def _trained_size(content: Any, multiple: int) -> int | None:
    """The image size among the options that a training checkpoint keeps."""
    options = content.get("opt") if isinstance(content, dict) else None
    if isinstance(options, StandIn):
        options = options.state
    size = options.get("imgsz") if isinstance(options, dict) else None
    return size if type(size) is int and 0 < size <= _LARGEST_SIZE and size % multiple == 0 else None


def _single(tensor: Tensor) -> Tensor:
    """Floating-point numbers in single precision."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _plain(value: Any, name: str) -> Any:
    """A copy of containers and values, of limited size: printing a few that hold each other may never end."""
    remaining = _MOST_PARTS

    def copy(item: Any, depth: int) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining < 0 or depth > _MOST_DEPTH:
            raise DataError(f"{name} is refused: its description is too large.")
        if isinstance(item, dict):
            return {copy(key, depth + 1): copy(element, depth + 1) for key, element in item.items()}
        if isinstance(item, (list, tuple)):
            return [copy(element, depth + 1) for element in item]
        if item is None or isinstance(item, (bool, float, str)):
            return item
        if isinstance(item, int) and item.bit_length() <= 64:  # far longer ones cannot even be printed
            return item
        raise DataError(f"{name} cannot be imported: its description holds more than text and numbers.")

    return copy(value, 0)
