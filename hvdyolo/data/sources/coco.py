"""COCO folders: ``annotations/instances_<split>….json`` and images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvdyolo.data.format import CROWD
from hvdyolo.data.sources.source import SourceBox, SourceImage
from hvdyolo.utils.errors import DataError, UsageError

_SPLITS = ("train", "val", "test")


class CocoSource:
    """A COCO dataset. Category numbers with gaps become 0, 1, 2 … in their order."""

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]

    def __init__(self, root: Path, names: Sequence[str] | None = None) -> None:
        """Args:
            names: class names to keep, in order; all categories by default.

        Raises:
            UsageError: ``root`` is not laid out like COCO.
            DataError: an annotation file is damaged.
        """
        files = {split: _annotation_file(root, split) for split in _SPLITS}
        found = {split: path for split, path in files.items() if path is not None}
        if not found:
            raise UsageError(
                f"{root}/annotations has no instances_train*.json, instances_val*.json or the like."
            )
        contents = {split: _read(path) for split, path in found.items()}
        categories = {
            int(category["id"]): str(category["name"])
            for content in contents.values()
            for category in content["categories"]
        }
        ordered = [categories[number] for number in sorted(categories)]
        self.names = tuple(names) if names is not None else tuple(ordered)
        missing = [name for name in self.names if name not in ordered]
        if missing:
            raise UsageError(f"{root} has no category '{missing[0]}'; it has {', '.join(ordered)}.")
        self._numbers = {
            number: self.names.index(name) for number, name in categories.items() if name in self.names
        }
        self._boxes: dict[tuple[Path, str], list[dict[str, Any]]] = {}
        self.splits = {
            split: self._images(root, split, found[split], content) for split, content in contents.items()
        }

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        assert image.annotation is not None
        boxes = []
        for row in self._boxes.get((image.annotation, image.name), ()):
            try:
                x, y, w, h = map(float, row["bbox"])
                label = self._numbers[int(row["category_id"])]
                flags = CROWD * bool(row.get("iscrowd", 0))
            except (KeyError, TypeError, ValueError):
                raise DataError(
                    f"{image.annotation}: annotation {row.get('id')} has no valid bbox or category."
                ) from None
            boxes.append(SourceBox.from_corners(0, label, (x, y, x + w, y + h), (width, height), flags))
        return boxes

    def _images(self, root: Path, split: str, path: Path, content: dict[str, Any]) -> list[SourceImage]:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        for row in content["annotations"]:
            if row.get("image_id") not in names:
                raise DataError(f"{path}: annotation {row.get('id')} belongs to no image.")
            if row.get("category_id") in self._numbers:
                self._boxes.setdefault((path, names[row["image_id"]]), []).append(row)
        folder = _image_folder(root, split, path)
        return [SourceImage(folder / name, name, path) for name in sorted(names.values())]


def _annotation_file(root: Path, split: str) -> Path | None:
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    return found[-1] if found else None


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


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not all(isinstance(content[key], list) for key in ("images", "annotations", "categories")):
            raise ValueError("lists")
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not a COCO instances file.") from None
    return content  # type: ignore[no-any-return]
