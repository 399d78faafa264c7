import json
from pathlib import Path

import numpy as np
import pytest

from hvdyolo.data.findings import LOSSES, MEANINGS, Finding
from hvdyolo.data.lint import check_boxes, summary, write_report
from hvdyolo.data.sources.source import SourceBox, SourceImage

IMAGE = SourceImage(Path("a.jpg"), "a.jpg", Path("a.txt"))
WIDTH, HEIGHT = 200, 100


def check(*boxes: SourceBox) -> tuple[list[list[float]], list[tuple[str, int, str]]]:
    checked = check_boxes(IMAGE, boxes, WIDTH, HEIGHT)
    assert checked.labels.dtype == np.float32
    assert checked.labels.shape == (len(checked.flags), 5) == (len(checked.boxes), 5)
    told = [(finding.kind, finding.line, finding.detail) for finding in checked.findings]
    return checked.labels.tolist(), told


def test_a_good_box_is_kept_as_it_is() -> None:
    labels, findings = check(SourceBox(1, 2, 0.5, 0.25, 0.125, 0.5))
    assert labels == [[2, 0.5, 0.25, 0.125, 0.5]]
    assert findings == []


@pytest.mark.parametrize(
    ("box", "kind", "detail"),
    [
        (SourceBox(3, 0, 0.5, 0.5, 0.0, 0.5), "degenerate", "0.0 x 50.0 pixels"),
        (SourceBox(3, 0, 0.0, 0.5, 5e-46, 0.5), "degenerate", "0.0 x 50.0 pixels"),  # 0 in single precision
        (SourceBox(3, 0, 0.5, 0.5, 0.5, 1e-60), "degenerate", "100.0 x 0.0 pixels"),
        (SourceBox(3, 0, 0.5, 0.5, -0.1, 0.5), "degenerate", "-20.0 x 50.0 pixels"),
        (SourceBox(3, 0, float("nan"), 0.5, 0.1, 0.5), "degenerate", "20.0 x 50.0 pixels"),
        (SourceBox(3, 0, 1.2, 0.5, 0.1, 0.5), "outside", "centre at 240.0, 50.0 pixels"),
        (SourceBox(3, 0, 0.5, -0.1, 0.1, 0.2), "outside", "centre at 100.0, -10.0 pixels"),
    ],
)
def test_a_bad_box_is_left_out_and_costs_no_other(box: SourceBox, kind: str, detail: str) -> None:
    labels, findings = check(SourceBox(1, 1, 0.5, 0.5, 0.5, 0.5), box, SourceBox(4, 2, 0.5, 0.5, 0.5, 0.5))
    assert [row[0] for row in labels] == [1, 2]
    assert findings == [(kind, 3, detail)]


def test_a_box_over_the_border_is_clipped_by_so_much() -> None:
    # 0.9 ± 0.2 of 200 pixels goes 20 pixels beyond; 0.05 ± 0.1 of 100 goes 5.
    labels, findings = check(SourceBox(7, 0, 0.9, 0.05, 0.4, 0.2))
    assert labels == [pytest.approx([0, 0.85, 0.075, 0.3, 0.15])]
    assert findings == [("clipped", 7, "by 20.0 pixels")]


def test_rounding_at_the_border_is_clipped_and_not_told() -> None:
    labels, findings = check(SourceBox(1, 0, 0.5, 0.5, 1.000002, 0.5))
    assert labels == [[0, 0.5, 0.5, 1.0, 0.5]]
    assert findings == []


def test_a_tiny_box_is_kept() -> None:
    labels, findings = check(SourceBox(1, 0, 0.5, 0.5, 0.005, 0.5))  # one pixel wide
    assert len(labels) == 1
    assert findings == [("tiny", 1, "1.0 pixels")]


def test_only_the_same_box_of_the_same_class_is_a_duplicate() -> None:
    labels, findings = check(
        SourceBox(1, 0, 0.5, 0.5, 0.5, 0.5),
        SourceBox(2, 1, 0.5, 0.5, 0.5, 0.5),
        SourceBox(3, 0, 0.5, 0.5, 0.5, 0.5),
        SourceBox(4, 0, 0.5, 0.5, 0.5, 0.25),
    )
    assert len(labels) == 3
    assert findings == [("duplicate", 3, "of line 1")]


def test_a_crowd_with_the_box_of_an_object_is_no_duplicate_of_it() -> None:
    boxes = [SourceBox(line, 0, 0.5, 0.5, 0.5, 0.5, flags=flags) for line, flags in ((1, 1), (2, 0), (3, 1))]
    checked = check_boxes(IMAGE, boxes, WIDTH, HEIGHT)
    assert checked.flags.tolist() == [1, 0]
    assert [(finding.kind, finding.line) for finding in checked.findings] == [("duplicate", 3)]


def test_rows_that_are_no_boxes_are_told_and_cost_no_other() -> None:
    bad = Finding("unreadable row", "a.txt", 2, "has 4 numbers")
    checked = check_boxes(IMAGE, [SourceBox(1, 0, 0.5, 0.5, 0.5, 0.5), bad], WIDTH, HEIGHT)
    assert (len(checked.labels), checked.findings) == (1, [bad])
    checked = check_boxes(IMAGE, [bad], WIDTH, HEIGHT)
    assert [finding.kind for finding in checked.findings] == ["unreadable row", "unlabelled"]


def test_findings_without_lines_name_the_row() -> None:
    first = SourceBox(0, 0, 0.5, 0.5, 0.5, 0.5, note="annotation 7 of a.jpg")
    again = SourceBox(0, 0, 0.5, 0.5, 0.5, 0.5, note="annotation 9 of a.jpg")
    _, findings = check(first, again)
    assert findings == [("duplicate", 0, "annotation 9 of a.jpg: of annotation 7 of a.jpg")]


def test_flags_stay_with_their_boxes() -> None:
    boxes = [
        SourceBox(1, 0, 0.5, 0.5, 0.5, 0.5, flags=1),
        SourceBox(2, 0, 0.5, 0.5, 0.0, 0.5, flags=2),
        SourceBox(3, 0, 0.5, 0.5, 0.25, 0.5, flags=4),
    ]
    checked = check_boxes(IMAGE, boxes, WIDTH, HEIGHT)
    assert checked.flags.tolist() == [1, 4]
    assert checked.boxes == [boxes[0], boxes[2]]


def test_background_is_told_apart_from_a_lost_label_file() -> None:
    assert check() == ([], [("unlabelled", 0, "no boxes")])
    checked = check_boxes(SourceImage(Path("a.jpg"), "a.jpg", None), [], WIDTH, HEIGHT)
    assert [finding.kind for finding in checked.findings] == ["missing"]


def test_the_report_is_for_programs_and_for_people(tmp_path: Path) -> None:
    findings = [
        Finding("clipped", "a.txt", 3, "by 2.0 pixels"),
        Finding("degenerate", "b.txt", 0, "0.0 x 0.0 pixels"),
        Finding("clipped", "c.txt", 1, "by 9.0 pixels"),
    ]
    boxes = {"train": {"cat": 10, "dog": 5}, "val": {"cat": 1, "dog": 0}}
    write_report(tmp_path, findings, {"train": 6, "val": 2}, boxes)
    report = json.loads((tmp_path / "lint.json").read_text())
    assert report["counts"] == {"degenerate": 1, "clipped": 2}
    assert report["boxes"] == boxes
    assert report["images"] == {"train": 6, "val": 2}
    assert report["findings"][0] == {
        "kind": "clipped", "file": "a.txt", "line": 3, "detail": "by 2.0 pixels"
    }  # fmt: skip
    text = (tmp_path / "lint.txt").read_text()
    assert "a.txt:3: clipped: by 2.0 pixels\n" in text
    assert "b.txt: degenerate: 0.0 x 0.0 pixels\n" in text
    table = [line.split() for line in text.splitlines()]
    assert ["all", "15", "1"] in table
    assert ["dog", "5", "0"] in table
    assert ["images", "6", "2"] in table


def test_the_summary_lists_what_was_lost_first_come() -> None:
    findings = [Finding("outside", f"{number}.txt", 1, "x") for number in range(13)]
    lines = summary([Finding("tiny", "t.txt", 1, "1 pixel"), *findings])
    assert lines[0].split()[0] == "13"
    assert not any("t.txt:1" in line for line in lines)
    assert lines[-1] == "  … and 3 more in lint.txt"
    assert len(lines) == 2 + 10 + 1
    assert summary([]) == ["  nothing found"]


def test_every_kind_of_loss_has_a_meaning() -> None:
    assert set(LOSSES) <= set(MEANINGS)
