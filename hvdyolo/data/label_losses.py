"""When so many labels are lost that the source must have been taken for something else.

A bad row costs the row. Many of them are a list of names that does not fit, pixels for fractions, or the
annotations of other images; what is trained on the rest learns that the lost objects are background.
"""

from collections.abc import Sequence
from pathlib import Path

from hvdyolo.data.findings import Finding
from hvdyolo.data.sources.source import first_few
from hvdyolo.utils.errors import DataError

_BAD_ROWS = ("unreadable row", "unknown class")
_ROWS_LEFT_OUT = (*_BAD_ROWS, "degenerate", "outside", "duplicate")
_IMAGES_LEFT_OUT = ("unreadable labels", "missing labels")
# A slip of the pen makes a few unknown classes, a list that lacks a name as many as the class has boxes.
_MOST_UNKNOWN = 0.1
_FEW = 10


def check_losses(split: str, findings: Sequence[Finding], images: int, boxes: int, report: Path) -> None:
    """Refuse a split of which more than half is lost, or a whole class.

    Args:
        findings: all of the split.
        images, boxes: what of it is packed.
        report: where every finding is written down.

    Raises:
        DataError: of the rows more than half are bad, or more than a tenth and at least ten are of classes
            without a name; or of the images more than half have labels that are missing or unreadable. Names
            the first of them.
    """
    bad = _of(findings, _BAD_ROWS)
    unknown = _of(findings, ("unknown class",))
    rows = boxes + len(_of(findings, _ROWS_LEFT_OUT))
    unlabelled = _of(findings, _IMAGES_LEFT_OUT)
    whole_class = len(unknown) >= _FEW and len(unknown) > _MOST_UNKNOWN * rows
    if 2 * len(unlabelled) > images + len(unlabelled):
        lost, whole = unlabelled, f"{images + len(unlabelled)} images"
        advice = "see whether these are the annotations of these images"
    elif whole_class or 2 * len(unknown) > rows:
        lost, whole = unknown, f"{rows} rows"
        advice = "see whether the list of class names is that of these labels"
    elif 2 * len(bad) > rows:
        lost, whole = bad, f"{rows} rows"
        advice = "see whether the labels are of the layout that --source says"
    else:
        return
    raise DataError(
        f"Of the {whole} of the split '{split}' {len(lost)} would be left out "
        f"({first_few([*map(str, lost)])}); {advice}, and {report} for the others."
    )


def _of(findings: Sequence[Finding], kinds: Sequence[str]) -> list[Finding]:
    return [finding for finding in findings if finding.kind in kinds]
