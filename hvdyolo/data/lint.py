"""Checking labels as they are packed, and a report that an annotator can act on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.sources.source import SourceBox, SourceImage
from hvdyolo.utils.files import write_atomically, write_json

_TINY_PIXELS = 2.0
_LEAST_CLIP_PIXELS = 0.5  # below it, rounding of the annotation tool

MEANINGS = {
    "degenerate": "boxes without width or height, left out",
    "outside": "boxes wholly outside their image, left out",
    "duplicate": "boxes that repeat another of the same class, left out",
    "clipped": "boxes that crossed the border, clipped to it",
    "tiny": f"boxes under {_TINY_PIXELS:g} pixels, kept",
    "rotated": "images turned as their EXIF orientation says, and encoded again",
    "unreadable": "images that cannot be decoded, left out",
    "unlabelled": "images without boxes, kept as background",
}
"""Kinds of findings, in the order of the report."""


@dataclass(frozen=True)
class Finding:
    """Something an annotator may want to look at.

    Attributes:
        kind: a key of :data:`MEANINGS`.
        file: the annotation file, or the image where it is about that.
        line: in the annotation file; 0 where that means nothing.
    """

    kind: str
    file: str
    line: int
    detail: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.kind}: {self.detail}"


def check_boxes(
    image: SourceImage, boxes: Sequence[SourceBox], width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[Finding]]:
    """Keep what can be learnt from.

    One bad row never costs the image or the other rows.

    Returns:
        (n, 5) labels class, cx, cy, w, h in 0..1; (n,) flags; findings.
    """
    rows: list[tuple[float, ...]] = []
    flags: list[int] = []
    findings = []
    for box in boxes:
        corners, kind, detail = _check(box, width, height)
        x1, y1, x2, y2 = corners
        row = (box.label, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        if kind in ("", "clipped", "tiny") and row in rows:
            kind, detail = "duplicate", f"repeats row {rows.index(row) + 1} of the image"
        if kind:
            findings.append(Finding(kind, str(image.annotation), box.line, detail))
        if kind in ("", "clipped", "tiny"):
            rows.append(row)
            flags.append(box.flags)
    if not rows:
        findings.append(Finding("unlabelled", str(image.path), 0, "no boxes"))
    labels = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return labels, np.array(flags, dtype=np.uint8), findings


def _check(box: SourceBox, width: int, height: int) -> tuple[tuple[float, float, float, float], str, str]:
    """Corners clipped to 0..1, and the kind and detail of a finding, empty if there is none."""
    corners = (
        box.cx - box.width / 2,
        box.cy - box.height / 2,
        box.cx + box.width / 2,
        box.cy + box.height / 2,
    )
    if not (box.width > 0 and box.height > 0 and np.isfinite(corners).all()):
        return corners, "degenerate", f"{box.width * width:.1f} x {box.height * height:.1f} pixels"
    clipped = tuple(min(max(value, 0.0), 1.0) for value in corners)
    x1, y1, x2, y2 = clipped
    if x2 <= x1 or y2 <= y1:
        return corners, "outside", f"centre at {box.cx * width:.1f}, {box.cy * height:.1f} pixels"
    sides = (width, height, width, height)
    beyond = max(abs(a - b) * side for a, b, side in zip(corners, clipped, sides, strict=True))
    if beyond > _LEAST_CLIP_PIXELS:
        return (x1, y1, x2, y2), "clipped", f"by {beyond:.1f} pixels"
    shorter = min((x2 - x1) * width, (y2 - y1) * height)
    if shorter < _TINY_PIXELS:
        return (x1, y1, x2, y2), "tiny", f"{shorter:.1f} pixels"
    return (x1, y1, x2, y2), "", ""


def write_report(out: Path, findings: Sequence[Finding], boxes_by_class: dict[str, dict[str, int]]) -> None:
    """Write ``lint.json`` and ``lint.txt`` into ``out``.

    Args:
        boxes_by_class: number of boxes, by split and class name.
    """
    report: dict[str, Any] = {
        "counts": dict(_counts(findings)),
        "boxes": boxes_by_class,
        "findings": [asdict(finding) for finding in findings],
    }
    write_json(out / "lint.json", report)
    write_atomically(out / "lint.txt", "".join(f"{finding}\n" for finding in findings))


def summary(findings: Sequence[Finding], most: int = 10) -> list[str]:
    """Lines for people: how many of each kind, and the first of those that lost something."""
    lines = [f"  {count:6d}  {MEANINGS[kind]}" for kind, count in _counts(findings)]
    lost = [
        finding
        for finding in findings
        if finding.kind in ("degenerate", "outside", "duplicate", "unreadable")
    ]
    lines += [f"  {finding}" for finding in lost[:most]]
    if len(lost) > most:
        lines.append(f"  … and {len(lost) - most} more in lint.txt")
    return lines


def _counts(findings: Iterable[Finding]) -> list[tuple[str, int]]:
    counts = Counter(finding.kind for finding in findings)
    return [(kind, counts[kind]) for kind in MEANINGS if counts[kind]]
