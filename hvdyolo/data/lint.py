"""Checking labels as they are packed, and a report that an annotator can act on."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.findings import LOSSES, MEANINGS, Finding
from hvdyolo.data.outlines import LEAST_POINTS, Outlines, Polygon
from hvdyolo.data.sources.source import SourceBox, SourceImage, SourceOutline
from hvdyolo.utils.files import write_atomically, write_json

REPORT_NAME = "lint.txt"
REPORT_DATA_NAME = "lint.json"

_TINY_PIXELS = 2.0
_LEAST_CLIP_PIXELS = 0.05  # below it, the six decimals that labels are commonly written with
_LEAST_SIDE = 1e-6  # of the image's: far below it nothing is left in single precision
_MOST_OUTSIDE = 0.5  # of an image's sides; what is drawn further away was meant otherwise
_KEPT = ("", "clipped", "tiny")

BoxCounts = Mapping[str, Mapping[str, int]]
"""Number of boxes by split and class name."""


@dataclass(frozen=True, eq=False)
class CheckedBoxes:
    """What of an image's boxes can be learnt from, and what is to be told about the others.

    Attributes:
        labels: (n, 5) class, cx, cy, w, h in 0..1.
        flags: (n,).
        boxes: the n boxes.
    """

    labels: NDArray[np.float32]
    flags: NDArray[np.uint8]
    boxes: Sequence[SourceBox]
    findings: list[Finding]


def check_boxes(
    image: SourceImage, rows: Sequence[SourceBox | Finding], width: int, height: int
) -> CheckedBoxes:
    """Keep what can be learnt from. One bad row never costs the image or the other rows."""
    kept: dict[tuple[float, ...], SourceBox] = {}
    findings = []
    for box in rows:
        if isinstance(box, Finding):
            findings.append(box)
            continue
        corners, kind, detail = _check(box, width, height)
        x1, y1, x2, y2 = corners
        # A crowd may have the box of one of its objects.
        row = (box.label, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, box.flags)
        if kind in _KEPT and row in kept:
            first = kept[row]
            kind, detail = "duplicate", f"of line {first.line}" if first.line else f"of {first.note}"
        if kind:
            detail = f"{box.note}: {detail}" if box.note else detail
            findings.append(Finding(kind, str(image.annotation), box.line, detail))
        if kind in _KEPT:
            kept[row] = box
    if image.annotation is None:
        findings.append(Finding("missing", str(image.path), 0, "no label file"))
    elif not kept:
        findings.append(Finding("unlabelled", str(image.path), 0, "no boxes"))
    boxes = list(kept.values())
    labels = np.array([row[:5] for row in kept], dtype=np.float32).reshape(-1, 5)
    return CheckedBoxes(labels, np.array([box.flags for box in boxes], dtype=np.uint8), boxes, findings)


def check_outlines(image: SourceImage, boxes: Sequence[SourceBox]) -> tuple[Outlines, list[Finding]]:
    """The polygons of each box that can be drawn, and what is to be told about the others."""
    outlines: list[list[Polygon]] = [[] for _ in boxes]
    findings = []
    for outline, box in zip(outlines, boxes, strict=True):
        source = box.outline
        if source is None:
            continue
        note = f"{box.note}: " if box.note else ""
        if not isinstance(source.polygons, list):
            findings.append(Finding("mask", str(image.annotation), box.line, f"{note}not kept"))
            continue
        for polygon in source.polygons:
            points = _points(polygon, source)
            if points is None:
                numbers = len(polygon) if isinstance(polygon, list) else 0
                findings.append(
                    Finding("polygon", str(image.annotation), box.line, f"{note}of {numbers} numbers")
                )
            else:
                outline.append(points)
    return outlines, findings


def _points(polygon: Any, source: SourceOutline) -> Polygon | None:
    """(n, 2) as fractions of the image; ``None``: they make no polygon."""
    try:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2) / (source.width, source.height)
    except (TypeError, ValueError, OverflowError):
        return None
    # Comparisons with what is no number are false.
    near = ((points >= -_MOST_OUTSIDE) & (points <= 1 + _MOST_OUTSIDE)).all()
    return points.astype(np.float32) if near and len(points) >= LEAST_POINTS else None


def _check(box: SourceBox, width: int, height: int) -> tuple[tuple[float, float, float, float], str, str]:
    """Corners clipped to 0..1, and the kind and detail of a finding, empty if there is none."""
    corners = (
        box.cx - box.width / 2,
        box.cy - box.height / 2,
        box.cx + box.width / 2,
        box.cy + box.height / 2,
    )
    if not (box.width >= _LEAST_SIDE and box.height >= _LEAST_SIDE and math.isfinite(sum(corners))):
        return corners, "degenerate", f"{box.width * width:.1f} x {box.height * height:.1f} pixels"
    x1, y1, x2, y2 = clipped = (_clip(corners[0]), _clip(corners[1]), _clip(corners[2]), _clip(corners[3]))
    if x2 <= x1 or y2 <= y1:
        return corners, "outside", f"centre at {box.cx * width:.1f}, {box.cy * height:.1f} pixels"
    sides = (width, height, width, height)
    beyond = max(abs(a - b) * side for a, b, side in zip(corners, clipped, sides, strict=True))
    if beyond > _LEAST_CLIP_PIXELS:
        return clipped, "clipped", f"by {beyond:.1f} pixels"
    shorter = min((x2 - x1) * width, (y2 - y1) * height)
    if shorter < _TINY_PIXELS:
        return clipped, "tiny", f"{shorter:.1f} pixels"
    return clipped, "", ""


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def write_report(out: Path, findings: Sequence[Finding], images: Mapping[str, int], boxes: BoxCounts) -> None:
    """Write ``lint.json`` and ``lint.txt`` into ``out``; ``images`` is their number by split."""
    write_json(
        out / REPORT_DATA_NAME,
        {
            "counts": dict(_counts(findings)),
            "images": dict(images),
            "boxes": boxes,
            "findings": [asdict(finding) for finding in findings],
        },
    )
    lines = ["Boxes by class", "", *_histogram(images, boxes), ""]
    for kind, count in _counts(findings):
        lines += [f"{kind}: {count} {MEANINGS[kind]}", ""]
        lines += [f"  {finding}" for finding in findings if finding.kind == kind]
        lines.append("")
    if not findings:
        lines.append("Nothing found.")
    text = "\n".join(lines).rstrip() + "\n"
    write_atomically(out / REPORT_NAME, text.encode(errors="backslashreplace"))  # file names may be no UTF-8


def summary(findings: Sequence[Finding], most: int = 10) -> list[str]:
    """Lines for people: how many of each kind, and the first of those by which something was lost."""
    lines = [f"  {count:6d}  {MEANINGS[kind]}" for kind, count in _counts(findings)]
    lines = lines or ["  nothing found"]
    lost = [finding for finding in findings if finding.kind in LOSSES]
    lines += [f"  {finding}" for finding in lost[:most]]
    if len(lost) > most:
        lines.append(f"  … and {len(lost) - most} more in {REPORT_NAME}")
    return lines


def _counts(findings: Iterable[Finding]) -> list[tuple[str, int]]:
    counts = Counter(finding.kind for finding in findings)
    return [(kind, counts[kind]) for kind in MEANINGS if counts[kind]]


def _histogram(images: Mapping[str, int], boxes: BoxCounts) -> list[str]:
    """A row for each class, a column for each split."""
    names = list(next(iter(boxes.values())))
    width = max(len(name) for name in [*names, "images"])
    rows = [
        ("", *boxes),
        *((name, *(str(boxes[split][name]) for split in boxes)) for name in names),
        ("all", *(str(sum(boxes[split].values())) for split in boxes)),
        ("images", *(str(images[split]) for split in boxes)),
    ]
    return [f"  {row[0]:{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
