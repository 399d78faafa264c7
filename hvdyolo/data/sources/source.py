"""What a source of images and labels gives to the packer."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hvdyolo.data.findings import Finding
from hvdyolo.data.format import MOST_ATTRIBUTE_BYTES, encode_names
from hvdyolo.utils.errors import DataError, StorageError, UsageError

SPLITS = ("train", "val", "test")

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

FAULTS_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP)
"""Errors of reading that another try would meet again; any other is the file system having a bad day."""


class UnreadableLabelsError(DataError):
    """All labels of an image are lost, so it cannot be learnt from: as background it would be wrong."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding


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
            UnreadableLabelsError, StorageError: as :meth:`boxes`.
        """

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox | Finding]:
        """The rows of an image of that size in pixels: a box each, or why there is none.

        Raises:
            UnreadableLabelsError: there are no rows to be told apart.
            StorageError: the file system fails.
        """


class Source(Labels, Protocol):
    """A dataset of some layout.

    Attributes:
        names: class names.
        splits: images of each split, ordered by name.
        findings: about the dataset as a whole; those of single images come with their boxes.
        lost: by split, rows that belong to no image of it, and listed images that are not in it because they
            have no labels. Empty for a split that lost nothing.
    """

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]
    findings: Sequence[Finding]
    lost: Mapping[str, Sequence[Finding]]

    def labels_of(self, images: Sequence[SourceImage]) -> Labels:
        """The labels of these images alone, picklable; all of a large dataset's are too many to be sent."""


def checked_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names that can be told apart.

    Raises:
        UsageError: there are none, one is empty, one occurs twice, or a shard cannot hold them.
    """
    if not names:
        raise UsageError(f"{where} has no class names.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{where} has the class name '{twice[0]}' twice; every class needs its own.")
    if not all(name.strip() for name in names):
        raise UsageError(f"{where} has an empty class name.")
    size = len(encode_names(names))
    if size > MOST_ATTRIBUTE_BYTES:
        raise UsageError(
            f"{where}: the {len(names)} class names take {size:,} bytes, and a shard holds "
            f"{MOST_ATTRIBUTE_BYTES:,} of them; shorten them."
        )
    return tuple(names)


def read_labels(path: Path) -> bytes:
    """A label file.

    Raises:
        UnreadableLabelsError: it cannot be read.
        StorageError: the file system fails, which must not cost an image.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in FAULTS_OF_THE_FILE:
            raise UnreadableLabelsError(
                Finding("unreadable labels", str(path), 0, f"cannot be read: {error.strerror}")
            ) from None
        raise StorageError(f"cannot read {path}: {error.strerror}.") from error


def first_few(things: Sequence[str], most: int = 3) -> str:
    """For a sentence: the first things of a list, and how many more there are."""
    told = ", ".join(things[:most])
    return told if len(things) <= most else f"{told} and {len(things) - most} more"


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


def listing(folder: Path) -> list[str]:
    """Names of the files in a folder, sorted; links that lead nowhere are none."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file())


def image_files(folder: Path) -> Iterator[Path]:
    """Images below a folder; hidden ones, such as the ``._`` files of some archives, are left out.

    Links are followed, as datasets on clusters are often made of them, but not in circles. Of several ways to
    one folder the first by name is taken, wherever the file system lists it.
    """
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None
