"""VOC folders: JPEGImages, Annotations, ImageSets/Main."""

import os
import xml.sax
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.sax import make_parser

from hvdyolo.data.findings import Finding
from hvdyolo.data.format import DIFFICULT, TRUNCATED
from hvdyolo.data.sources.source import (
    IMAGE_SUFFIXES,
    SPLITS,
    SourceBox,
    SourceImage,
    checked_names,
    repeated_images,
)
from hvdyolo.utils.errors import DataError, UsageError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    """An ``<object>`` element: its line and the text of its elements and of its box's."""

    line: int
    values: dict[str, str] = field(default_factory=dict)


@dataclass
class VocAnnotation:
    """An annotation file; ``size`` holds the text of the elements of ``<size>``."""

    objects: list[VocObject] = field(default_factory=list)
    size: dict[str, str] = field(default_factory=dict)


class VocSource:
    """A VOC dataset.

    Coordinates are taken as they stand, as points on the pixel grid: nothing is subtracted for VOC's counting
    from 1, as most users of YOLOv5 do.
    """

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]
    findings: Sequence[Finding]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            names: class names in order; by default those that occur, sorted.

        Raises:
            UsageError: ``root`` is not laid out like VOC.
            DataError: an annotation is missing or damaged.
        """
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            if not (root / folder).is_dir():
                raise UsageError(f"{root} is not a VOC dataset: it has no folder {folder}.")
        lists = _lists(root)
        files = _files_by_stem(root / "JPEGImages")
        findings: list[Finding] = []
        self.splits = {split: _images(root, path, files, findings) for split, path in lists.items()}
        self.findings = [*findings, *repeated_images(self.splits)]
        self._annotations: dict[str, VocAnnotation] = {}
        if names is None:
            names = sorted(
                {
                    found.values.get("name", "")
                    for images in self.splits.values()
                    for image in images
                    for found in self._annotation(image).objects
                }
            )
            self.names = checked_names([name for name in names if name], str(root / "Annotations"))
        else:
            self.names = checked_names(names, "--names")
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """See :class:`Source`. Many tools leave zeros there, which tell nothing."""
        size = self._annotation(image).size
        try:
            width, height = int(size["width"]), int(size["height"])
        except (KeyError, ValueError):
            return None
        return (width, height) if width > 0 and height > 0 else None

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        """See :class:`Source`."""
        return [self._box(image, found, (width, height)) for found in self._annotation(image).objects]

    def labels_of(self, images: Sequence[SourceImage]) -> "VocSource":
        """See :class:`Source`. Those that were not yet read are read when they are asked for."""
        part = copy(self)
        part.splits, part.findings = {}, ()
        names = {image.name for image in images}
        part._annotations = {name: self._annotations[name] for name in names & self._annotations.keys()}
        return part

    def _annotation(self, image: SourceImage) -> VocAnnotation:
        assert image.annotation is not None
        if image.name not in self._annotations:
            self._annotations[image.name] = read_annotation(image.annotation)
        return self._annotations[image.name]

    def _box(self, image: SourceImage, found: VocObject, size: tuple[int, int]) -> SourceBox:
        where = f"{image.annotation}:{found.line}"
        name = found.values.get("name", "")
        if name not in self._numbers:
            raise DataError(f"{where}: class '{name}' is not among the names {', '.join(self.names)}.")
        try:
            corners = [float(found.values[key]) for key in _CORNERS]
        except (KeyError, ValueError):
            raise DataError(f"{where}: the object has no four numbers xmin, ymin, xmax, ymax.") from None
        flags = DIFFICULT * (found.values.get("difficult") == "1")
        flags |= TRUNCATED * (found.values.get("truncated") == "1")
        return SourceBox.from_corners(found.line, self._numbers[name], corners, size, flags)


def read_annotation(path: Path) -> VocAnnotation:
    """An annotation file, its objects with their lines.

    Raises:
        DataError: it is not XML, or uses what hostile XML uses.
    """
    handler = _Handler()
    parser = make_parser()
    parser.setContentHandler(handler)
    try:
        with open(path, "rb") as stream:
            parser.parse(stream)
    except xml.sax.SAXParseException as error:
        raise DataError(f"{path}:{error.getLineNumber()}: is not valid XML: {error.getMessage()}.") from None
    except DefusedXmlException as error:
        raise DataError(f"{path} is refused, it declares XML entities: {type(error).__name__}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError) as error:  # unknown or wrong encodings
        raise DataError(f"{path} cannot be read: {error}.") from None
    return handler.annotation


class _Handler(xml.sax.ContentHandler):
    """Collects objects; those within a ``<part>`` are parts of an object, not objects."""

    def __init__(self) -> None:
        super().__init__()
        self.annotation = VocAnnotation()
        self._path: list[str] = []
        self._text = ""
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802 - overrides
        self._locator = locator

    def startElement(self, name: str, attributes: Any) -> None:  # noqa: N802 - overrides
        self._path.append(name)
        self._text = ""
        if name == "object" and len(self._path) == 2:
            self.annotation.objects.append(VocObject(self._locator.getLineNumber()))

    def characters(self, content: str) -> None:
        self._text += content

    def endElement(self, name: str) -> None:  # noqa: N802 - overrides
        inside = self._path[1:-1]
        if inside in (["object"], ["object", "bndbox"]):
            self.annotation.objects[-1].values[name] = self._text.strip()
        elif inside == ["size"]:
            self.annotation.size[name] = self._text.strip()
        self._path.pop()
        self._text = ""


def _lists(root: Path) -> dict[str, Path]:
    """The lists of the splits; ``trainval.txt`` is train and val once more, unless these are missing."""
    folder = root / "ImageSets" / "Main"
    lists = {split: folder / f"{split}.txt" for split in SPLITS}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if "train" not in lists and "val" not in lists and (folder / "trainval.txt").is_file():
        lists = {"train": folder / "trainval.txt", **lists}
    if not lists:
        raise UsageError(f"{folder} has none of train.txt, val.txt and test.txt.")
    return lists


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """One listing instead of a look for every image and suffix, which metadata servers feel."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries), reverse=True)
    return {
        Path(name).stem: folder / name for name in names if name.lower().endswith(IMAGE_SUFFIXES)
    }  # where a stem has several suffixes, the first by name


def _images(root: Path, listed: Path, files: dict[str, Path], findings: list[Finding]) -> list[SourceImage]:
    images: dict[str, SourceImage] = {}
    try:
        lines = listed.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed} cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # Lists of a single class have a second column; a stem may hold spaces.
        stem = line.strip() if line.strip() in files else line.split()[0]
        if stem not in files:
            raise DataError(f"{listed}:{number}: lists {stem}, and {root}/JPEGImages has no such image.")
        annotation = root / "Annotations" / f"{stem}.xml"
        if not annotation.is_file():
            raise DataError(f"{listed}:{number}: lists {stem}, and {annotation} does not exist.")
        if stem in images:
            findings.append(Finding("repeated", str(listed), number, f"{stem} is listed before"))
        images[stem] = SourceImage(files[stem], files[stem].name, annotation)
    return sorted(images.values(), key=lambda image: image.name)
