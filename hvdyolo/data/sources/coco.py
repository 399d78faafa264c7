"""COCO folders: ``annotations/instances_<split>….json`` and images."""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdyolo.data.findings import Finding
from hvdyolo.data.format import CROWD
from hvdyolo.data.sources.source import (
    SPLITS,
    SourceBox,
    SourceImage,
    SourceOutline,
    checked_names,
    first_few,
    listing,
    repeated_images,
)
from hvdyolo.utils.errors import DataError, UsageError


class CocoSource:
    """A COCO dataset. Category numbers with gaps become 0, 1, 2 … in their order."""

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]
    findings: Sequence[Finding]
    lost: Mapping[str, Sequence[Finding]]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            names: class names to keep, in order; all categories by default.

        Raises:
            UsageError: ``root`` is not laid out like COCO.
            DataError: an annotation file is damaged, or lists an image that does not exist.
        """
        files = {split: _annotation_file(root, split) for split in SPLITS}
        contents = {split: _read(path) for split, path in files.items() if path is not None}
        if not contents:
            raise UsageError(
                f"{root}/annotations has no instances_train*.json, instances_val*.json or the like."
            )
        categories = _categories(contents.values())
        everything = [categories[number] for number in sorted(categories)]
        if names is None:
            self.names = checked_names(everything, f"{root}/annotations")
        else:
            self.names = checked_names(names, "--names")
        missing = [name for name in self.names if name not in everything]
        if missing:
            raise UsageError(f"{root} has no category '{missing[0]}'; it has {', '.join(everything)}.")
        self._numbers: dict[object, int] = {
            number: self.names.index(name) for number, name in categories.items() if name in self.names
        }
        not_wanted = categories.keys() - self._numbers.keys()
        self._rows: dict[tuple[Path, str], list[Mapping[str, Any]]] = {}
        self._sizes: dict[tuple[Path, str], tuple[int, int]] = {}
        splits, lost = {}, {}
        for split, content in contents.items():
            folder = _image_folder(root, split, content.path)
            listed = self._list_images(content)
            absent = _missing(folder, listed.values())
            if absent:
                raise DataError(f"{content.path} lists {first_few(absent)}, and {folder} has no such image.")
            lost[split] = self._list_rows(content, listed, not_wanted)
            splits[split] = [
                SourceImage(folder / name, name, content.path) for name in sorted(listed.values())
            ]
        self.splits, self.lost = splits, lost
        self.findings = repeated_images(splits)

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """See :class:`Source`."""
        assert image.annotation is not None
        return self._sizes.get((image.annotation, image.name))

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox | Finding]:
        """See :class:`Source`."""
        assert image.annotation is not None
        rows = self._rows.get((image.annotation, image.name), ())
        return [self._box(row, image, width, height) for row in rows]

    def labels_of(self, images: Sequence[SourceImage]) -> "CocoSource":
        """See :class:`Source`."""
        part = copy(self)
        part.splits, part.findings, part.lost = {}, (), {}
        keys = {(image.annotation, image.name) for image in images if image.annotation is not None}
        part._rows = {key: self._rows[key] for key in keys & self._rows.keys()}
        part._sizes = {key: self._sizes[key] for key in keys & self._sizes.keys()}
        return part

    def _list_images(self, content: "_Content") -> dict[int | str, str]:
        """Names of images by their numbers; each gets an empty list of rows."""
        names: dict[int | str, str] = {}
        faults = []
        for image in content.images:
            number, name = image["id"], _file_name(image["file_name"], content.path)
            if (content.path, name) in self._rows:
                faults.append(f"lists the image {name} twice")
            elif number in names:
                faults.append(f"gives {names[number]} and {name} the same id {number}")
            names[number] = name
            self._rows[content.path, name] = []
            if isinstance(image.get("width"), int) and isinstance(image.get("height"), int):
                self._sizes[content.path, name] = image["width"], image["height"]
        if faults:
            raise DataError(f"{content.path} {first_few(faults)}; which labels are whose cannot be told.")
        return names

    def _list_rows(
        self, content: "_Content", names: Mapping[Any, str], not_wanted: Collection[object]
    ) -> list[Finding]:
        """Give each image its rows, without those of categories that are not wanted.

        Returns:
            What is to be told of rows that belong to no image.
        """
        lost = []
        for place, row in enumerate(content.annotations):
            if not isinstance(row, dict):
                detail = f"row {place} of 'annotations' is no object"
                lost.append(Finding("unreadable row", str(content.path), 0, detail))
                continue
            number = row.get("image_id")
            name = names.get(number) if isinstance(number, int | float | str) else None
            if name is None:
                detail = (
                    f"annotation {_short(row.get('id'))} is of image {_short(number)}, which is not listed"
                )
                lost.append(Finding("unreadable row", str(content.path), 0, detail))
            elif _category(row) not in not_wanted:
                self._rows[content.path, name].append(row)
        return lost

    def _box(
        self, row: Mapping[str, Any], image: SourceImage, width: int, height: int
    ) -> SourceBox | Finding:
        note = f"annotation {_short(row.get('id'))} of {image.name}"
        label = self._numbers.get(_category(row))
        if label is None:
            detail = f"{note}: category {_short(row.get('category_id'))} is not listed"
            return Finding("unknown class", str(image.annotation), 0, detail)
        bbox = _finite(row.get("bbox"), 4)
        if bbox is None:
            detail = f"{note}: bbox {_short(row.get('bbox'))} is not four numbers"
            return Finding("unreadable row", str(image.annotation), 0, detail)
        x, y, w, h = bbox
        # Empty lists stand for none in sets of boxes.
        polygons = row.get("segmentation")
        outline = SourceOutline(polygons, width, height) if polygons else None
        flags = CROWD * bool(row.get("iscrowd", 0))
        return SourceBox.from_corners(0, label, (x, y, x + w, y + h), (width, height), flags, note, outline)


@dataclass(frozen=True)
class _Content:
    """An annotation file, whose images and categories have the keys that name them.

    Attributes:
        annotations: not looked at yet; each may be anything.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[Any]
    categories: list[dict[str, Any]]


def _read(path: Path) -> _Content:
    try:
        content = json.loads(path.read_bytes())
        return _Content(
            path,
            _rows(content, "images", {"id": (int, str), "file_name": (str,)}),
            _list(content, "annotations"),
            _rows(content, "categories", {"id": (int,), "name": (str,)}),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a COCO instances file: {error}.") from None


def _list(content: Any, key: str) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f"it has no list '{key}'")
    rows: list[Any] = content[key]
    return rows


def _rows(content: Any, key: str, needed: Mapping[str, tuple[type, ...]]) -> list[dict[str, Any]]:
    rows = _list(content, key)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of '{key}' is no object")
        for name, types in needed.items():
            if not isinstance(row.get(name), types):
                raise ValueError(f"row {number} of '{key}' has no valid '{name}'")
    return rows


def _file_name(text: str, path: Path) -> str:
    """One spelling for each file."""
    name = os.path.normpath(text)
    try:
        os.fsencode(name)
        if "\0" not in name:
            return name
    except UnicodeEncodeError:
        pass  # half of a surrogate pair
    raise DataError(f"{path} lists the image {_short(text)}, which is no name that a file can have.")


def _missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Those that are not there, by a listing of each folder: metadata servers feel a look for every image."""
    there: dict[str, set[str]] = {}
    missing = []
    for name in names:
        inner, file = os.path.split(name)
        if inner not in there:
            there[inner] = set(listing(folder / inner)) if (folder / inner).is_dir() else set()
        # Some file systems know a file by other spellings than they list.
        if file not in there[inner] and not (folder / name).exists():
            missing.append(name)
    return missing


def _category(row: Mapping[str, Any]) -> int | float | str | None:
    """A row's category; lists and objects, which no key can be, are none."""
    category = row.get("category_id")
    return category if isinstance(category, int | float | str) else None


def _finite(value: Any, count: int) -> list[float] | None:
    """So many finite numbers, or ``None`` if it is anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _short(value: Any) -> str:
    """On one line, whatever it is."""
    return f"{value!r:.60}"


def _categories(contents: Iterable[_Content]) -> dict[int, str]:
    """Names by number, the same in all splits."""
    categories: dict[int, str] = {}
    for content in contents:
        for category in content.categories:
            known = categories.setdefault(category["id"], category["name"])
            if known != category["name"]:
                raise DataError(
                    f"{content.path}: category {category['id']} is '{category['name']}' here and '{known}' "
                    "in another split."
                )
    return categories


def _annotation_file(root: Path, split: str) -> Path | None:
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(found) > 1:
        raise UsageError(
            f"{root}/annotations has several files for '{split}' ({', '.join(path.name for path in found)}); "
            "keep one there."
        )
    return found[0] if found else None


def _image_folder(root: Path, split: str, annotations: Path) -> Path:
    """``train2017`` for ``instances_train2017.json``, as published, or one of its usual variants."""
    name = annotations.stem.removeprefix("instances_")
    for folder in (
        root / name,
        root / "images" / name,
        root / split,
        root / "images" / split,
        root / "images",
    ):
        if folder.is_dir():
            return folder
    raise UsageError(f"{annotations} needs its images in {root / name}, which does not exist.")
