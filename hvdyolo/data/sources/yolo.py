"""YOLO folders: a ``data.yaml``, images, and a text file of labels beside each."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import yaml

from hvdyolo.data.findings import Finding
from hvdyolo.data.sources.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    SourceBox,
    SourceImage,
    SourceOutline,
    checked_names,
    image_files,
    repeated_images,
)
from hvdyolo.utils.errors import DataError, UsageError

# Fractions a little outside 0..1 are clipped and reported; numbers like these are pixels.
_LEAST, _MOST = -0.5, 1.5


class YoloSource:
    """A dataset described by ``data.yaml``."""

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]
    findings: Sequence[Finding]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            root: the folder of ``data.yaml``, or that file.
            names: replaces the file's names.

        Raises:
            UsageError: ``data.yaml`` is missing or does not fit.
            DataError: a split is empty, or lists an image that does not exist.
        """
        path = root if root.is_file() else root / "data.yaml"
        if not path.is_file():
            raise UsageError(f"There is no {path}; --root must be the folder of data.yaml, or that file.")
        values = _read_yaml(path)
        self.names = checked_names(names, "--names") if names is not None else _names(values, path)
        findings: list[Finding] = []
        self.splits = {
            split: _images(values, path, split, findings) for split in SPLITS if values.get(split) is not None
        }
        if not self.splits:
            raise UsageError(f"{path} names no images under train, val or test.")
        self.findings = [*findings, *repeated_images(self.splits), *_orphans(self.splits)]

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """See :class:`Source`. Labels are fractions of the upright image, whatever its size."""
        return None

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        """See :class:`Source`."""
        if image.annotation is None:
            return []
        try:
            lines = image.annotation.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise DataError(f"{image.annotation} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise DataError(f"{image.annotation} is not text; labels are rows of numbers.") from None
        return [
            self._box(line, f"{image.annotation}:{number}", number)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]

    def labels_of(self, images: Sequence[SourceImage]) -> "YoloSource":
        """See :class:`Source`. They are read when they are asked for."""
        part = copy(self)
        part.splits, part.findings = {}, ()
        return part

    def _box(self, text: str, where: str, line: int) -> SourceBox:
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            raise DataError(f"{where}: '{text.strip()[:60]}' is not a row of numbers.") from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise DataError(
                f"{where}: has {len(values)} numbers, not class cx cy w h or class and a polygon."
            )
        if not all(map(math.isfinite, values)) or values[0] != int(values[0]):
            raise DataError(f"{where}: '{text.strip()[:60]}' has a class or a number that is none.")
        label, numbers = int(values[0]), values[1:]
        if not 0 <= label < len(self.names):
            raise DataError(
                f"{where}: class {label} is beyond the {len(self.names)} names (0 … {len(self.names) - 1})."
            )
        wild = [value for value in numbers if not _LEAST <= value <= _MOST]
        if wild:
            raise DataError(
                f"{where}: labels must be fractions of the image in 0..1, and {wild[0]:g} looks like pixels."
            )
        outline = SourceOutline([numbers]) if len(numbers) > 4 else None
        cx, cy, width, height = _polygon_box(numbers) if outline is not None else numbers
        return SourceBox(line, label, cx, cy, width, height, outline=outline)


def _polygon_box(points: list[float]) -> list[float]:
    """The box around a polygon, cx, cy, w, h."""
    xs, ys = points[0::2], points[1::2]
    return [
        (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)
    ]  # fmt: skip


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold keys such as 'train', 'val' and 'names'.")
    return values


def _names(values: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = values.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UsageError(f"{path}: the numbers of 'names' must be 0, 1, 2 and so on.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UsageError(f"{path} has no list 'names' of class names.")
    if "nc" in values and values["nc"] != len(names):
        raise UsageError(f"{path}: nc is {values['nc']} and there are {len(names)} names.")
    return checked_names([str(name) for name in names], str(path))


def _images(values: dict[str, Any], path: Path, split: str, findings: list[Finding]) -> list[SourceImage]:
    """Images of a split; their names are relative to the folder that all of them have in common."""
    entries = values[split] if isinstance(values[split], list) else [values[split]]
    if not all(isinstance(entry, str) for entry in entries):
        raise UsageError(f"{path}: '{split}' must be a folder, a list file, or several of these.")
    found: dict[Path, None] = {}
    folders: set[str] = set()
    for entry in entries:
        resolved = _resolve(entry, values, path, split)
        listed = sorted(image_files(resolved), key=str) if resolved.is_dir() else _listed(resolved)
        folders |= {str(resolved)} if resolved.is_dir() else {str(image.parent) for image in listed}
        for image in listed:
            if image in found:
                findings.append(Finding("repeated", str(image), 0, f"twice in {split}"))
            found[image] = None
    if not found:
        raise DataError(f"{path}: the split '{split}' is empty: {', '.join(entries)} holds no images.")
    common = os.path.commonpath(folders)
    images = [
        SourceImage(image, str(image).removeprefix(common).lstrip(os.sep), label_file)
        for image, label_file in zip(found, _label_files(found), strict=True)
    ]
    return sorted(images, key=lambda image: image.name)


def _resolve(entry: str, values: dict[str, Any], path: Path, split: str) -> Path:
    """An entry is relative to 'path' if given, which is relative to data.yaml; some are so to data.yaml."""
    folder = path.absolute().parent
    base = folder / str(values.get("path") or "")
    tried = [base / entry, folder / entry]
    # Exports for a training folder elsewhere begin with ../, though the images lie beside data.yaml.
    if entry.startswith("../"):
        tried.append(folder / entry[3:])
    for candidate in tried:
        if candidate.exists():
            return Path(os.path.normpath(candidate))
    raise UsageError(f"{path}: '{split}: {entry}' does not exist; it was looked for at {tried[0]}.")


def _listed(path: Path) -> list[Path]:
    """Images of a text file, one path a line, relative to the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is neither a folder of images nor a text file of image paths.") from None
    images = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image = Path(os.path.normpath(path.parent / line.strip()))
        if not image.is_file():
            raise DataError(f"{path}:{number}: lists {line.strip()}, which does not exist.")
        images.append(image)
    return images


def _label_files(images: Iterable[Path]) -> Iterator[Path | None]:
    """The label file of each image, ``None`` if it has none."""
    folders: dict[Path, Path] = {}
    for image in images:
        folder = image.parent
        if folder not in folders:
            folders[folder] = _label_folder(folder)
        path = folders[folder] / f"{image.stem}.txt"
        yield path if path.is_file() else None


def _label_folder(images: Path) -> Path:
    """``…/labels/…`` for ``…/images/…``: the last folder of that name is exchanged."""
    parts = list(images.parts)
    named = [number for number, part in enumerate(parts) if part == "images"]
    if named:
        parts[named[-1]] = "labels"
    return Path(*parts)


def _orphans(splits: Mapping[str, Sequence[SourceImage]]) -> list[Finding]:
    """Label files beside used ones whose image is not there: often misspelt or lost."""
    used = {image.annotation for images in splits.values() for image in images if image.annotation}
    findings = []
    for folder in sorted({path.parent for path in used if "labels" in path.parts}):
        beside = _image_folder(folder)
        # An image that is there and in no list was left out on purpose.
        stems = {path.stem for path in beside.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        orphans = [
            path
            for path in folder.glob("*.txt")
            if path.stem not in stems and path not in used and path.name != "classes.txt"
        ]
        findings += [
            Finding("orphan", str(path), 0, f"no image of that name in {beside}") for path in sorted(orphans)
        ]
    return findings


def _image_folder(labels: Path) -> Path:
    """The way back from :func:`_label_folder`."""
    parts = list(labels.parts)
    last = max(number for number, part in enumerate(parts) if part == "labels")
    return Path(*parts[:last], "images", *parts[last + 1 :])
