"""What a source of images and labels gives to the packer."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hvdyolo.data.findings import Finding
from hvdyolo.utils.errors import DataError, UsageError

SPLITS = ("train", "val", "test")

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class SourceImage:
    """An image file and where its labels are.

    Attributes:
        name: relative to the images' folder, unique in its split; samples are ordered by it.
        annotation: the labels' file; ``None`` where the image has none.
    """

    path: Path
    name: str
    annotation: Path | None


@dataclass(frozen=True)
class SourceOutline:
    """An object's outline as its source has it, not looked at before it is asked for: few datasets keep it.

    Attributes:
        polygons: lists of x1, y1, x2, y2 …; anything else is no polygons but a mask of pixels.
        width, height: of the image, in the unit of these.
    """

    polygons: Any
    width: float = 1.0
    height: float = 1.0


@dataclass(frozen=True)
class SourceBox:
    """A box as its source has it, not yet checked.

    Attributes:
        line: in the annotation file, from 1; 0 where that means nothing.
        cx, cy, width, height: as fractions of the image; may lie outside 0..1.
        flags: bits of :mod:`hvdyolo.data.format`.
        note: which box it is, where no line tells.
        outline: ``None``: there is the box alone.
    """

    line: int
    label: int
    cx: float
    cy: float
    width: float
    height: float
    flags: int = 0
    note: str = ""
    outline: SourceOutline | None = None

    @classmethod
    def from_corners(
        cls,
        line: int,
        label: int,
        xyxy: Sequence[float],
        size: tuple[int, int],
        flags: int = 0,
        note: str = "",
        outline: SourceOutline | None = None,
    ) -> "SourceBox":
        """From corners in pixels of an image of ``size`` width, height."""
        x1, y1, x2, y2 = xyxy
        width, height = size
        return cls(
            line,
            label,
            (x1 + x2) / 2 / width,
            (y1 + y2) / 2 / height,
            (x2 - x1) / width,
            (y2 - y1) / height,
            flags,
            note,
            outline,
        )


class Labels(Protocol):
    """The labels of some images."""

    def stated_size(self, image: SourceImage) -> tuple[int, int] | None:
        """Width and height as the annotation has them, ``None`` if it does not tell.

        Raises:
            DataError: as :meth:`boxes`.
        """

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        """The boxes of an image of that size in pixels.

        Raises:
            DataError: the labels cannot be understood; names file and line.
        """


class Source(Labels, Protocol):
    """A dataset of some layout.

    Attributes:
        names: class names.
        splits: images of each split, ordered by name.
        findings: about the dataset as a whole; those of single images come with their boxes.
    """

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]
    findings: Sequence[Finding]

    def labels_of(self, images: Sequence[SourceImage]) -> Labels:
        """The labels of these images alone, picklable; all of a large dataset's are too many to be sent."""


def checked_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names that can be told apart.

    Raises:
        UsageError: there are none, one is empty, or one occurs twice.
    """
    if not names:
        raise UsageError(f"{where} has no class names.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{where} has the class name '{twice[0]}' twice; every class needs its own.")
    if not all(name.strip() for name in names):
        raise UsageError(f"{where} has an empty class name.")
    return tuple(names)


def repeated_images(splits: Mapping[str, Sequence[SourceImage]]) -> list[Finding]:
    """Images that are in several splits: what is trained on must not be scored on."""
    first: dict[Path, str] = {}
    findings = []
    for split, images in splits.items():
        for image in images:
            if image.path in first:
                findings.append(
                    Finding("repeated", str(image.path), 0, f"in {first[image.path]} and in {split}")
                )
            first.setdefault(image.path, split)
    return findings


def image_files(folder: Path) -> Iterator[Path]:
    """Images below a folder; hidden ones, such as the ``._`` files of some archives, are left out.

    Links are followed, as datasets on clusters are often made of them, but not in circles.
    """
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None
