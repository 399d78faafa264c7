"""Patches over pictures, and the boxes that are left."""

import numpy as np
import pytest

from hvdyolo.data.cutout import cut_out
from hvdyolo.data.objects import Objects
from hvdyolo.data.parameters import Patch

SIZE = 100


def cut(patches: list[Patch], *boxes: list[float]) -> tuple[np.ndarray, list[int]]:
    """The picture, and which boxes are left."""
    output = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    objects = Objects(
        np.arange(len(boxes), dtype=np.float32), np.array(boxes, dtype=np.float64).reshape(-1, 4)
    )
    left = cut_out(output, objects, patches)
    for label, box in zip(left.classes, left.boxes_xyxy, strict=True):
        assert box.tolist() == boxes[int(label)]
    return output, left.classes.astype(int).tolist()


def patch(left: float, top: float, right: float, bottom: float, colour=(1, 2, 3)) -> Patch:
    return Patch(
        ((left + right) / 200, (top + bottom) / 200), ((right - left) / 100, (bottom - top) / 100), colour
    )


def test_a_patch_covers_its_rectangle() -> None:
    output, _ = cut([patch(10, 20, 30, 50)])
    assert (output[20:50, 10:30] == (1, 2, 3)).all()
    assert output.sum() == 20 * 30 * 6


def test_a_patch_may_reach_over_the_edge() -> None:
    output, _ = cut([patch(-10, -5, 10, 15), patch(90, 95, 110, 115, (9, 9, 9))])
    assert (output[:15, :10] == (1, 2, 3)).all()
    assert (output[95:, 90:] == 9).all()
    assert output.any(-1).sum() == 15 * 10 + 5 * 10


def test_later_patches_lie_on_top() -> None:
    output, _ = cut([patch(0, 0, 20, 20), patch(10, 10, 30, 30, (7, 7, 7))])
    assert output[15, 15].tolist() == [7, 7, 7]
    assert output[5, 5].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("width", "left"), [(12, [0]), (13, [])])
def test_a_box_is_dropped_when_more_than_three_fifths_are_covered(width: int, left: list[int]) -> None:
    assert cut([patch(40, 40, 40 + width, 60)], [40, 40, 60, 60])[1] == left


def test_all_pixels_that_a_box_touches_count() -> None:
    # 7 of 11 columns; of the 10 whole ones it would be 6.
    assert cut([patch(44, 40, 51, 60)], [40, 40, 50.5, 60])[1] == []
    assert cut([patch(40, 40, 47, 60)], [40.5, 40, 51, 60])[1] == []


def test_what_several_patches_cover_is_counted_once() -> None:
    box = [40.0, 40, 60, 60]
    twice = [patch(40, 40, 50, 60), patch(40, 40, 52, 60)]
    assert cut(twice, box)[1] == [0]
    assert cut([*twice, patch(50, 40, 56, 60)], box)[1] == []


def test_boxes_elsewhere_are_left_as_they_are() -> None:
    found = cut([patch(40, 40, 60, 60)], [0, 0, 30.5, 30.25], [41, 41, 59, 59], [30, 30, 97.5, 99])[1]
    assert found == [0, 2]


def test_without_boxes_there_is_nothing_to_drop() -> None:
    assert cut([patch(40, 40, 60, 60)])[1] == []
