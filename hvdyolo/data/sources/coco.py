"""COCO folders: ``annotations/instances_<split>….json`` and images."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
    repeated_images,
)
from hvdyolo.utils.errors import DataError, UsageError


class CocoSource:
    """A COCO dataset. Category numbers with gaps become 0, 1, 2 … in their order."""

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]
    findings: Sequence[Finding]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            names: class names to keep, in order; all categories by default.

        Raises:
            UsageError: ``root`` is not laid out like COCO.
            DataError: an annotation file is damaged.
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
        self._numbers = {
            number: self.names.index(name) for number, name in categories.items() if name in self.names
        }
        self._rows: dict[tuple[Path, str], list[Mapping[str, Any]]] = {}
        self._sizes: dict[tuple[Path, str], tuple[int, int]] = {}
        self.splits = {split: self._images(root, split, content) for split, content in contents.items()}
        self.findings = repeated_images(self.splits)

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """See :class:`Source`."""
        assert image.annotation is not None
        return self._sizes.get((image.annotation, image.name))

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        """See :class:`Source`."""
        assert image.annotation is not None
        boxes = []
        for row in self._rows.get((image.annotation, image.name), ()):
            note = f"annotation {row.get('id')} of {image.name}"
            try:
                x, y, w, h = (float(value) for value in _as_list(row["bbox"]))
                label = self._numbers[row["category_id"]]
                flags = CROWD * bool(row.get("iscrowd", 0))
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{image.annotation}: {note} has no bbox of four numbers.") from None
            corners = x, y, x + w, y + h
            # Empty lists stand for none in sets of boxes.
            polygons = row.get("segmentation")
            outline = SourceOutline(polygons, width, height) if polygons else None
            boxes.append(SourceBox.from_corners(0, label, corners, (width, height), flags, note, outline))
        return boxes

    def labels_of(self, images: Sequence[SourceImage]) -> "CocoSource":
        """See :class:`Source`."""
        part = copy(self)
        part.splits, part.findings = {}, ()
        keys = {(image.annotation, image.name) for image in images if image.annotation is not None}
        part._rows = {key: self._rows[key] for key in keys & self._rows.keys()}
        part._sizes = {key: self._sizes[key] for key in keys & self._sizes.keys()}
        return part

    def _images(self, root: Path, split: str, content: "_Content") -> list[SourceImage]:
        folder = _image_folder(root, split, content.path)
        names: dict[Any, str] = {}
        for image in content.images:
            names[image["id"]] = name = image["file_name"]
            if (content.path, name) in self._rows:
                raise DataError(f"{content.path} lists the image {name} twice.")
            self._rows[content.path, name] = []
            if isinstance(image.get("width"), int) and isinstance(image.get("height"), int):
                self._sizes[content.path, name] = image["width"], image["height"]
        categories = {category["id"] for category in content.categories}
        for row in content.annotations:
            number = row.get("id")
            if row.get("image_id") not in names:
                raise DataError(
                    f"{content.path}: annotation {number} is of image {row.get('image_id')}, "
                    "which is not listed."
                )
            if row.get("category_id") not in categories:
                raise DataError(
                    f"{content.path}: annotation {number} is of category {row.get('category_id')}, "
                    "which is not listed."
                )
            if row["category_id"] in self._numbers:
                self._rows[content.path, names[row["image_id"]]].append(row)
        return [SourceImage(folder / name, name, content.path) for name in sorted(names.values())]


@dataclass(frozen=True)
class _Content:
    """An annotation file, whose rows have the keys that name them."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def _read(path: Path) -> _Content:
    try:
        content = json.loads(path.read_bytes())
        return _Content(
            path,
            _rows(content, "images", {"id": (int, str), "file_name": (str,)}),
            _rows(content, "annotations", {}),
            _rows(content, "categories", {"id": (int,), "name": (str,)}),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a COCO instances file: {error}.") from None


def _rows(content: Any, key: str, needed: Mapping[str, tuple[type, ...]]) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f"it has no list '{key}'")
    rows: list[dict[str, Any]] = content[key]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of '{key}' is no object")
        for name, types in needed.items():
            if not isinstance(row.get(name), types):
                raise ValueError(f"row {number} of '{key}' has no valid '{name}'")
    return rows


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


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
