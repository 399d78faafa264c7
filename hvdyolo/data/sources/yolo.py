"""YOLO folders: a ``data.yaml``, images, and a text file of labels beside each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hvdyolo.data.sources.source import SourceBox, SourceImage
from hvdyolo.utils.errors import DataError, UsageError

_SPLITS = ("train", "val", "test")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# Fractions a little outside 0..1 are clipped and reported; numbers like these are pixels.
_LEAST, _MOST = -0.5, 1.5


class YoloSource:
    """A dataset described by ``data.yaml``."""

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            root: the folder of ``data.yaml``, or that file.
            names: replaces the file's names.

        Raises:
            UsageError: ``data.yaml`` is missing or does not fit.
        """
        path = root if root.is_file() else root / "data.yaml"
        if not path.is_file():
            raise UsageError(f"There is no {path}; --root must be the folder of data.yaml, or that file.")
        values = _read_yaml(path)
        self.names = tuple(names) if names is not None else _names(values, path)
        self.splits = {
            split: _images(values, path, split) for split in _SPLITS if values.get(split) is not None
        }
        if not self.splits:
            raise UsageError(f"{path} names no images under train, val or test.")

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        if image.annotation is None:
            return []
        try:
            lines = image.annotation.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{image.annotation} cannot be read: {error}.") from None
        return [
            self._box(line, f"{image.annotation}:{number}", number)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]

    def _box(self, text: str, where: str, line: int) -> SourceBox:
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            raise DataError(f"{where}: '{text.strip()}' is not a row of numbers.") from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise DataError(
                f"{where}: has {len(values)} numbers, not class cx cy w h or class and a polygon."
            )
        if not all(map(math.isfinite, values)) or values[0] != int(values[0]):
            raise DataError(f"{where}: '{text.strip()}' has a class or a number that is none.")
        label, numbers = int(values[0]), values[1:]
        if not 0 <= label < len(self.names):
            raise DataError(
                f"{where}: class {label} is beyond the {len(self.names)} names (0 … {len(self.names) - 1})."
            )
        if not all(_LEAST <= value <= _MOST for value in numbers):
            raise DataError(
                f"{where}: labels must be fractions of the image in 0..1; these look like pixels."
            )
        if len(numbers) > 4:
            numbers = _polygon_box(numbers)
        cx, cy, width, height = numbers
        return SourceBox(line, label, cx, cy, width, height)


def _polygon_box(points: list[float]) -> list[float]:
    """The box around a polygon, cx, cy, w, h."""
    xs, ys = points[0::2], points[1::2]
    return [
        (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)
    ]  # fmt: skip


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold keys such as 'train', 'val' and 'names'.")
    return values


def _names(values: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = values.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UsageError(f"{path}: the numbers of 'names' must be 0, 1, 2 and so on.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UsageError(f"{path} has no list 'names' of class names.")
    if "nc" in values and values["nc"] != len(names):
        raise UsageError(f"{path}: nc is {values['nc']} and there are {len(names)} names.")
    return tuple(map(str, names))


def _images(values: dict[str, Any], path: Path, split: str) -> list[SourceImage]:
    entries = values[split]
    images: dict[str, SourceImage] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        for image in _entry_images(_resolve(str(entry), values, path, split)):
            images[image.name] = image
    if not images:
        raise DataError(f"{path}: the split '{split}' is empty: {entries} holds no images.")
    return [images[name] for name in sorted(images)]


def _resolve(entry: str, values: dict[str, Any], path: Path, split: str) -> Path:
    """An entry is relative to 'path' if given, which is relative to data.yaml; some are so to data.yaml."""
    base = path.parent / str(values.get("path") or "")
    tried = [base / entry, path.parent / entry]
    # Exports for a training folder elsewhere begin with ../, though the images lie beside data.yaml.
    if entry.startswith("../"):
        tried.append(path.parent / entry[3:])
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise UsageError(f"{path}: '{split}: {entry}' does not exist; it was looked for at {tried[0]}.")


def _entry_images(entry: Path) -> list[SourceImage]:
    """Images of a folder, nested ones too, or of a list of paths."""
    if entry.is_dir():
        return [
            SourceImage(path, str(path.relative_to(entry)), _label_file(path))
            for path in sorted(entry.rglob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
    images = []
    for line in entry.read_text().splitlines():
        if line.strip():
            path = entry.parent / line.strip()
            if not path.is_file():
                raise DataError(f"{entry} lists {line.strip()}, which does not exist.")
            images.append(SourceImage(path, line.strip().removeprefix("./"), _label_file(path)))
    return images


def _label_file(image: Path) -> Path | None:
    """``…/labels/….txt`` for ``…/images/….jpg``: the last folder of that name is exchanged."""
    parts = list(image.parts)
    folders = [number for number, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    path = Path(*parts).with_suffix(".txt")
    return path if path.is_file() else None
