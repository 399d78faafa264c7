"""YOLO folders: a ``data.yaml``, images, and a text file of labels beside each."""

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
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
    UnreadableLabelsError,
    checked_names,
    first_few,
    image_files,
    listing,
    read_labels,
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
    lost: Mapping[str, Sequence[Finding]]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            root: the folder of ``data.yaml``, or that file.
            names: replaces the file's names.

        Raises:
            UsageError: ``data.yaml`` is missing or does not fit.
            DataError: ``data.yaml`` is damaged, a split is empty, or lists an image that does not exist.
        """
        path = root if root.is_file() else root / "data.yaml"
        if not path.is_file():
            raise UsageError(f"There is no {path}; --root must be the folder of data.yaml, or that file.")
        values = _read_yaml(path)
        self.names = checked_names(names, "--names") if names is not None else _names(values, path)
        layout = _Layout(path, values)
        findings: list[Finding] = []
        self.splits = {
            split: _images(layout, split, values[split], findings)
            for split in SPLITS
            if values.get(split) is not None
        }
        if not self.splits:
            raise UsageError(f"{path} names no images under train, val or test.")
        images = [image for images in self.splits.values() for image in images]
        used = {str(image.annotation) for image in images if image.annotation is not None}
        self.findings = [*findings, *repeated_images(self.splits), *layout.orphans(used)]
        self.lost = {}  # a row is of its file's image, and an image without labels is background

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """See :class:`Source`. Labels are fractions of the upright image, whatever its size."""
        return None

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox | Finding]:
        """See :class:`Source`."""
        if image.annotation is None:
            return []
        try:
            lines = read_labels(image.annotation).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UnreadableLabelsError(
                Finding(
                    "unreadable labels", str(image.annotation), 0, "is not text; labels are rows of numbers"
                )
            ) from None
        return [
            self._box(line, image.annotation, number) for number, line in enumerate(lines, 1) if line.strip()
        ]

    def labels_of(self, images: Sequence[SourceImage]) -> "YoloSource":
        """See :class:`Source`. They are read when they are asked for."""
        part = copy(self)
        part.splits, part.findings, part.lost = {}, (), {}
        return part

    def _box(self, text: str, annotation: Path, line: int) -> SourceBox | Finding:
        unreadable = partial(Finding, "unreadable row", str(annotation), line)
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            return unreadable(f"{text.strip()!r:.60} is not a row of numbers")
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            return unreadable(f"has {len(values)} numbers, not class cx cy w h or class and a polygon")
        if not all(map(math.isfinite, values)) or values[0] != int(values[0]):
            return unreadable(f"{text.strip()!r:.60} has a class or a number that is none")
        label, numbers = int(values[0]), values[1:]
        if not 0 <= label < len(self.names):
            detail = f"class {label} is beyond the {len(self.names)} names (0 … {len(self.names) - 1})"
            return Finding("unknown class", str(annotation), line, detail)
        wild = [value for value in numbers if not _LEAST <= value <= _MOST]
        if wild:
            return unreadable(f"{wild[0]:g} looks like pixels, and labels are fractions of the image in 0..1")
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
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # what makes dates and numbers raises anything when it is given none
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
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


class _Layout:
    """Where the paths of a ``data.yaml`` lead, and which labels belong to which images.

    Attributes:
        path: of ``data.yaml``.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self._home = Path(os.path.normpath(path.absolute().parent))
        self._base = Path(os.path.normpath(self._home / str(values.get("path") or "")))
        self._label_folders: dict[Path, Path] = {}
        self._label_files: dict[Path, frozenset[str]] = {}

    def resolve(self, entry: str, split: str) -> Path:
        """An entry is relative to 'path' if given, which is so to data.yaml; some are so to data.yaml."""
        tried = [self._base / entry, self._home / entry]
        # Exports for a training folder elsewhere begin with ../, though the images lie beside data.yaml.
        if entry.startswith("../"):
            tried.append(self._home / entry[3:])
        for candidate in tried:
            if candidate.exists():
                return Path(os.path.normpath(candidate))
        raise UsageError(f"{self.path}: '{split}: {entry}' does not exist; it was looked for at {tried[0]}.")

    def label_folder(self, images: Path) -> Path:
        """``…/labels/…`` for ``…/images/…``, or ``images`` itself if it has no such name in the dataset.

        Of several folders called images the last is exchanged. Those that the dataset lies in do not count.
        """
        if images not in self._label_folders:
            root = self._root(images)
            parts = list(images.relative_to(root).parts)
            named = [number for number, part in enumerate(parts) if part == "images"]
            if named:
                parts[named[-1]] = "labels"
            self._label_folders[images] = root.joinpath(*parts)
        return self._label_folders[images]

    def label_file(self, image: Path) -> Path | None:
        """Where the labels of an image are, if there are any.

        A folder is listed once: asking for each file would be as many calls of a metadata server, and by
        each rank.
        """
        folder, name = self.label_folder(image.parent), f"{image.stem}.txt"
        if folder not in self._label_files:
            self._label_files[folder] = frozenset(listing(folder) if folder.is_dir() else ())
        return folder / name if name in self._label_files[folder] else None

    def orphans(self, used: Collection[str]) -> list[Finding]:
        """Label files in folders of labels whose image is not there: often misspelt or lost.

        Args:
            used: paths of those that belong to an image.
        """
        twins: dict[Path, Path] = {}
        findings = []
        # Folders before those in them: of what lies in a folder of labels, no image may be left.
        for images, labels in sorted(self._label_folders.items(), key=lambda pair: pair[1]):
            if labels in twins:
                continue
            for folder, files in _text_files(labels, deep=labels != images):
                beside = twins[folder] = images / folder.relative_to(labels)
                unused = [Path(path) for path in files if path not in used]
                # An image that is there and in no list was left out on purpose.
                stems = _image_stems(beside) if unused else ()
                findings += [
                    Finding("orphan", str(path), 0, f"no image of that name in {beside}")
                    for path in unused
                    if path.stem not in stems and (folder != beside or _holds_rows(path))
                ]
        return findings

    def _root(self, images: Path) -> Path:
        """The folder below which names mean something."""
        if images.is_relative_to(self._home):
            return self._home
        if images.is_relative_to(self._base):
            return self._base.parent  # a path that ends in images is one of images
        return Path(os.path.commonpath([images, self._home]))


def _images(layout: _Layout, split: str, entries: Any, findings: list[Finding]) -> list[SourceImage]:
    """Images of a split; their names are relative to the folder that all of them have in common."""
    entries = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, str) for entry in entries):
        raise UsageError(f"{layout.path}: '{split}' must be a folder, a list file, or several of these.")
    found: dict[Path, None] = {}
    folders: set[Path] = set()
    for entry in entries:
        resolved = layout.resolve(entry, split)
        listed = sorted(image_files(resolved), key=str) if resolved.is_dir() else _listed(resolved)
        folders |= {resolved} if resolved.is_dir() else {image.parent for image in listed}
        for image in listed:
            if image in found:
                findings.append(Finding("repeated", str(image), 0, f"twice in {split}"))
            found[image] = None
    if not found:
        raise DataError(f"{layout.path}: the split '{split}' is empty: {', '.join(entries)} holds no images.")
    for folder in folders:
        layout.label_folder(folder)  # of a folder whose images are all in others below it, for orphans
    common = os.path.commonpath(folders)
    images = []
    for image in found:
        name = str(image).removeprefix(common).lstrip(os.sep)
        images.append(SourceImage(image, name, layout.label_file(image)))
    return sorted(images, key=lambda image: image.name)


def _listed(path: Path) -> list[Path]:
    """Images of a text file, one path a line, relative to the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is neither a folder of images nor a text file of image paths.") from None
    listed = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    images = {number: Path(os.path.normpath(path.parent / line)) for number, line in listed.items()}
    missing = [number for number, image in images.items() if not image.is_file()]
    if missing:
        told = first_few([f"{listed[number]} (line {number})" for number in missing])
        raise DataError(f"{path}:{missing[0]}: lists {told}, and there is no such image.")
    return list(images.values())


def _text_files(labels: Path, *, deep: bool) -> Iterator[tuple[Path, list[str]]]:
    """Of a folder, and those below it if ``deep``, the paths of text files that may hold labels."""
    for root, folders, files in os.walk(labels):
        if not deep:
            folders.clear()
        folders.sort()
        names = sorted(name for name in files if name.endswith(".txt") and not name.startswith("."))
        yield Path(root), [f"{root}/{name}" for name in names if name != "classes.txt"]


def _image_stems(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}


def _holds_rows(path: Path) -> bool:
    """Whether a text file beside images is one of labels, not a list or a note."""
    try:
        with open(path, encoding="utf-8-sig") as stream:
            words = stream.readline().split()
            return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
    except (OSError, ValueError):
        return False
