from pathlib import Path

import pytest

from hvdyolo.data.findings import Finding
from hvdyolo.data.label_losses import check_losses
from hvdyolo.utils.errors import DataError

REPORT = Path("out/lint.txt")


def findings(**counts: int) -> list[Finding]:
    return [
        Finding(kind.replace("_", " "), f"{number}.txt", 7, "why")
        for kind, count in counts.items()
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("counts", "images", "boxes", "says"),
    [
        # Rows: more than half, of those too that are left out for their boxes.
        ({"unreadable_row": 5}, 10, 5, None),
        ({"unreadable_row": 6}, 10, 5, "Of the 11 rows of the split 'train' 6 would be left out .*--source"),
        ({"unreadable_row": 6, "degenerate": 1}, 10, 5, None),
        ({"unreadable_row": 6, "outside": 1, "clipped": 9, "tiny": 9}, 10, 4, "Of the 11 rows"),
        ({"unreadable_row": 3, "unknown_class": 3}, 10, 5, "Of the 11 rows .* 6 would be left out"),
        ({"unreadable_row": 1}, 1, 0, "Of the 1 rows"),
        # Classes: a tenth, if they are many.
        ({"unknown_class": 9}, 90, 80, None),
        ({"unknown_class": 10}, 90, 90, None),
        ({"unknown_class": 11}, 90, 90, "Of the 101 rows .* 11 would be .*list of class names"),
        ({"unknown_class": 3}, 3, 2, "Of the 5 rows .* 3 would be .*list of class names"),
        # Images.
        ({"missing_labels": 3, "unreadable_labels": 2}, 5, 9, None),
        ({"missing_labels": 3, "unreadable_labels": 3}, 5, 9, "Of the 11 images .* 6 would be left out"),
        ({"missing": 9, "unlabelled": 9}, 18, 0, None),
        ({}, 5, 0, None),
    ],
)  # fmt: skip
def test_a_split_is_refused_when_most_of_it_is_lost(
    counts: dict[str, int], images: int, boxes: int, says: str | None
) -> None:
    found = findings(**counts)
    if says is None:
        check_losses("train", found, images, boxes, REPORT)
        return
    with pytest.raises(DataError, match=says) as caught:
        check_losses("train", found, images, boxes, REPORT)
    assert caught.value.exit_code == 65
    assert "(0.txt:7: " in str(caught.value)
    assert str(REPORT) in str(caught.value)


def test_the_first_few_are_named() -> None:
    with pytest.raises(DataError, match=r"0\.txt:7: .*, 1\.txt:7: .*, 2\.txt:7: [^,]* and 17 more"):
        check_losses("train", findings(unreadable_row=20), 20, 0, REPORT)
