"""VOC folders: JPEGImages, Annotations, ImageSets/Main."""

import xml.sax
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.sax import make_parser

from hvdyolo.data.format import DIFFICULT, TRUNCATED
from hvdyolo.data.sources.source import SourceBox, SourceImage
from hvdyolo.utils.errors import DataError, UsageError

_SPLITS = ("train", "val", "test")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    """An ``<object>`` element: its line and the text of its elements."""

    line: int
    values: dict[str, str] = field(default_factory=dict)


class VocSource:
    """A VOC dataset.

    Coordinates are taken as they stand, as points on the pixel grid: nothing is subtracted for VOC's counting
    from 1, as most users of YOLOv5 do.
    """

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            names: class names in order; by default those that occur, sorted.

        Raises:
            UsageError: ``root`` is not laid out like VOC.
            DataError: an annotation is missing or damaged, or has a class not in ``names``.
        """
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            if not (root / folder).is_dir():
                raise UsageError(f"{root} is not a VOC dataset: it has no folder {folder}.")
        lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in _SPLITS}
        lists = {split: path for split, path in lists.items() if path.is_file()}
        if not lists:
            raise UsageError(f"{root}/ImageSets/Main has none of train.txt, val.txt and test.txt.")
        self.splits = {
            split: [_find(root, stem, path) for stem in sorted(_stems(path))] for split, path in lists.items()
        }
        self._objects = {
            image.name: read_objects(image.annotation)
            for images in self.splits.values()
            for image in images
            if image.annotation is not None
        }
        found = {value.values.get("name", "") for objects in self._objects.values() for value in objects}
        self.names = tuple(names) if names is not None else tuple(sorted(found))
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        return [self._box(image, found, (width, height)) for found in self._objects.get(image.name, ())]

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


def read_objects(path: Path) -> list[VocObject]:
    """The objects of an annotation file, with their lines.

    Raises:
        DataError: it is not XML, or uses what hostile XML uses.
    """
    handler = _Handler()
    parser = make_parser()
    parser.setContentHandler(handler)
    try:
        parser.parse(str(path))
    except xml.sax.SAXParseException as error:
        raise DataError(f"{path}:{error.getLineNumber()}: is not valid XML: {error.getMessage()}.") from None
    except (DefusedXmlException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    return handler.objects


class _Handler(xml.sax.ContentHandler):
    """Collects objects; those within a ``<part>`` are parts of an object, not objects."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: list[VocObject] = []
        self._path: list[str] = []
        self._text = ""
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802 - overrides
        self._locator = locator

    def startElement(self, name: str, attributes: Any) -> None:  # noqa: N802 - overrides
        self._path.append(name)
        self._text = ""
        if name == "object" and len(self._path) == 2:
            self.objects.append(VocObject(self._locator.getLineNumber()))

    def characters(self, content: str) -> None:
        self._text += content

    def endElement(self, name: str) -> None:  # noqa: N802 - overrides
        inside = self._path[1:-1]
        if inside in (["object"], ["object", "bndbox"]):
            self.objects[-1].values[name] = self._text.strip()
        self._path.pop()
        self._text = ""


def _stems(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _find(root: Path, stem: str, listed: Path) -> SourceImage:
    for suffix in _SUFFIXES:
        path = root / "JPEGImages" / f"{stem}{suffix}"
        if path.is_file():
            break
    else:
        raise DataError(f"{listed} lists {stem}, and {root}/JPEGImages has no such image.")
    annotation = root / "Annotations" / f"{stem}.xml"
    if not annotation.is_file():
        raise DataError(f"{listed} lists {stem}, and {annotation} does not exist.")
    return SourceImage(path, path.name, annotation)
