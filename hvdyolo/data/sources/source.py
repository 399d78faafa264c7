"""What a source of images and labels gives to the packer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class SourceImage:
    """An image file and where its labels are.

    Attributes:
        name: relative to the images' folder; samples are ordered by it.
        annotation: the labels' file, for messages; ``None`` where the image has none.
    """

    path: Path
    name: str
    annotation: Path | None


@dataclass(frozen=True)
class SourceBox:
    """A box as its source has it, not yet checked.

    Attributes:
        line: in the annotation file, from 1; 0 where that means nothing.
        cx, cy, width, height: as fractions of the image; may lie outside 0..1.
        flags: bits of :mod:`hvdyolo.data.format`.
    """

    line: int
    label: int
    cx: float
    cy: float
    width: float
    height: float
    flags: int = 0

    @classmethod
    def from_corners(
        cls, line: int, label: int, xyxy: Sequence[float], size: tuple[int, int], flags: int = 0
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
        )


class Source(Protocol):
    """A dataset of some layout.

    Attributes:
        names: class names.
        splits: images of each split, ordered by name.
    """

    names: tuple[str, ...]
    splits: Mapping[str, Sequence[SourceImage]]

    def boxes(self, image: SourceImage, width: int, height: int) -> list[SourceBox]:
        """The boxes of an image of that size in pixels.

        Raises:
            DataError: the labels cannot be understood; names file and line.
        """
