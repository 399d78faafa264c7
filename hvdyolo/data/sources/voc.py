"""VOC folders: JPEGImages, Annotations, ImageSets/Main."""

import io
import math
import xml.sax
from collections.abc import Collection, Mapping, Sequence
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
    UnreadableLabelsError,
    checked_names,
    first_few,
    listing,
    read_labels,
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
    lost: Mapping[str, Sequence[Finding]]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            names: class names in order; by default those that occur, sorted.

        Raises:
            UsageError: ``root`` is not laid out like VOC.
            DataError: a list names an image that does not exist, or most annotations are missing.
        """
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            if not (root / folder).is_dir():
                raise UsageError(f"{root} is not a VOC dataset: it has no folder {folder}.")
        lists = _lists(root)
        there = _Folder(root)
        splits, lost = {}, {}
        findings = there.findings()
        for split, path in lists.items():
            listed = _stems(path, there, findings)
            splits[split], lost[split] = there.images(listed, path)
        self.splits, self.lost = splits, lost
        self.findings = [*findings, *repeated_images(splits)]
        self._annotations: dict[str, VocAnnotation] = {}
        self.names = checked_names(names, "--names") if names is not None else self._found_names(root)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """See :class:`Source`. Many tools leave zeros there, which tell nothing."""
        size = self._annotation(image).size
        try:
            width, height = int(size["width"]), int(size["height"])
        except (KeyError, ValueError):
            return None
        return (width, height) if width > 0 and height > 0 else None

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox | Finding]:
        """See :class:`Source`."""
        return [self._box(image, found, (width, height)) for found in self._annotation(image).objects]

    def labels_of(self, images: Sequence[SourceImage]) -> "VocSource":
        """See :class:`Source`. Those that were not yet read are read when they are asked for."""
        part = copy(self)
        part.splits, part.findings, part.lost = {}, (), {}
        names = {image.name for image in images}
        part._annotations = {name: self._annotations[name] for name in names & self._annotations.keys()}
        return part

    def _found_names(self, root: Path) -> tuple[str, ...]:
        """The names that occur, sorted; which reads all annotations."""
        names: set[str] = set()
        unreadable: list[UnreadableLabelsError] = []
        images = [image for images in self.splits.values() for image in images]
        for image in images:
            try:
                names.update(found.values.get("name", "") for found in self._annotation(image).objects)
            except UnreadableLabelsError as error:  # its image is left out when it is packed
                unreadable.append(error)
        if len(unreadable) == len(images) > 0:
            raise DataError(f"No annotation in {root} can be read: {first_few([*map(str, unreadable)])}.")
        return checked_names(sorted(names - {""}), str(root / "Annotations"))

    def _annotation(self, image: SourceImage) -> VocAnnotation:
        assert image.annotation is not None
        if image.name not in self._annotations:
            self._annotations[image.name] = read_annotation(image.annotation)
        return self._annotations[image.name]

    def _box(self, image: SourceImage, found: VocObject, size: tuple[int, int]) -> SourceBox | Finding:
        name = found.values.get("name", "")
        if name not in self._numbers:
            detail = f"class {name!r:.60} is not among the names {first_few(self.names, 20)}"
            return Finding("unknown class", str(image.annotation), found.line, detail)
        try:
            corners = [float(found.values[key]) for key in _CORNERS]
        except (KeyError, ValueError):
            corners = [math.nan]
        if not all(map(math.isfinite, corners)):
            detail = "the object has no four numbers xmin, ymin, xmax, ymax"
            return Finding("unreadable row", str(image.annotation), found.line, detail)
        flags = DIFFICULT * (found.values.get("difficult") == "1")
        flags |= TRUNCATED * (found.values.get("truncated") == "1")
        return SourceBox.from_corners(found.line, self._numbers[name], corners, size, flags)


def read_annotation(path: Path) -> VocAnnotation:
    """An annotation file, its objects with their lines.

    Raises:
        UnreadableLabelsError: it is not XML, or uses what hostile XML uses.
        StorageError: the file system fails.
    """
    handler = _Handler()
    parser = make_parser()
    parser.setContentHandler(handler)
    raw = read_labels(path)
    try:
        parser.parse(io.BytesIO(raw))
    except xml.sax.SAXParseException as error:
        detail, line = f"is not valid XML: {error.getMessage()}", error.getLineNumber() or 0
    except DefusedXmlException as error:
        detail, line = f"is refused, it declares XML entities: {type(error).__name__}", 0
    except (ValueError, LookupError) as error:  # unknown or wrong encodings
        detail, line = f"cannot be read: {error}", 0
    else:
        return handler.annotation
    raise UnreadableLabelsError(Finding("unreadable labels", str(path), line, detail))


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


class _Folder:
    """The images and annotations that there are.

    Each by one listing instead of a look for every image and suffix, which metadata servers feel.
    """

    def __init__(self, root: Path) -> None:
        self._images = root / "JPEGImages"
        self._annotations = root / "Annotations"
        self._files: dict[str, str] = {}
        self._doubles: dict[str, str] = {}
        for name in listing(self._images):
            if name.lower().endswith(IMAGE_SUFFIXES):
                used = self._files.setdefault(Path(name).stem, name)
                if used != name:
                    self._doubles[name] = used
        self._annotated = {
            name.removesuffix(".xml") for name in listing(self._annotations) if name.endswith(".xml")
        }

    def __contains__(self, stem: str) -> bool:
        """Whether there is an image of that name."""
        return stem in self._files

    def findings(self) -> list[Finding]:
        """Images and annotations that can belong to nothing."""
        doubles = [
            Finding("ambiguous", str(self._images / name), 0, f"the labels of that name go to {used}")
            for name, used in self._doubles.items()
        ]
        # Hidden ones, such as the ._ files of some archives, are none.
        orphans = [
            Finding(
                "orphan",
                str(self._annotations / f"{stem}.xml"),
                0,
                f"no image of that name in {self._images}",
            )
            for stem in sorted(self._annotated - self._files.keys())
            if not stem.startswith(".")
        ]
        return [*doubles, *orphans]

    def images(self, stems: Collection[str], listed: Path) -> tuple[list[SourceImage], list[Finding]]:
        """Images of a list, by name, and those that are left out because they have no annotation.

        Raises:
            DataError: most have none.
        """
        missing = [stem for stem in stems if stem not in self._annotated]
        if 2 * len(missing) > len(stems):
            raise DataError(
                f"{self._annotations} lacks {len(missing)} of the {len(stems)} images that {listed} lists "
                f"({first_few(missing)}); see whether these are the annotations of these images."
            )
        lost = [
            Finding("missing labels", str(self._images / self._files[stem]), 0, f"no {stem}.xml")
            for stem in missing
        ]
        images = [
            SourceImage(
                self._images / self._files[stem], self._files[stem], self._annotations / f"{stem}.xml"
            )
            for stem in stems
            if stem in self._annotated
        ]
        return sorted(images, key=lambda image: image.name), lost


def _stems(listed: Path, folder: _Folder, findings: list[Finding]) -> Collection[str]:
    """The images of a list, each once.

    Raises:
        DataError: some do not exist.
    """
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed} cannot be read: {error}.") from None
    stems: dict[str, None] = {}
    missing: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # Lists of a single class have a second column; a stem may hold spaces.
        stem = line.strip() if line.strip() in folder else line.split()[0]
        if stem not in folder:
            missing[number] = stem
        elif stem in stems:
            findings.append(Finding("repeated", str(listed), number, f"{stem} is listed before"))
        stems[stem] = None
    if missing:
        told = first_few([f"{stem} (line {number})" for number, stem in missing.items()])
        raise DataError(f"{listed}:{min(missing)}: lists {told}, and JPEGImages has no such image.")
    return stems.keys()
