"""Where an image lies in a square, by hand and both ways."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.ops.letterbox import Letterbox, common_rectangle, fit_letterbox

SIDES = st.integers(1, 5000)


def test_landscape() -> None:
    assert fit_letterbox(480, 640, 320) == Letterbox(
        size=320, scale=0.5, pad_left=0, pad_top=40, resized_width=320, resized_height=240
    )


def test_portrait_is_enlarged_and_odd_border_goes_after() -> None:
    # Twice as large: 640 high, 401 * 2 = 802 > 640, so scale = 640 / 401 and 301 * 640 / 401 = 480.4.
    assert fit_letterbox(401, 301, 640) == Letterbox(
        size=640, scale=640 / 401, pad_left=80, pad_top=0, resized_width=480, resized_height=640
    )
    # 101 of 256 pixels high: 155 are left, 77 before and 78 after.
    assert fit_letterbox(101, 256, 256).pad_top == 77


def test_a_thread_of_an_image_keeps_a_pixel() -> None:
    box = fit_letterbox(1, 5000, 320)
    assert (box.resized_width, box.resized_height, box.pad_top) == (320, 1, 159)


def test_boxes_by_hand() -> None:
    letterbox = fit_letterbox(480, 640, 320)
    assert letterbox.to_input(np.array([[100.0, 200.0, 300.0, 400.0]])).tolist() == [[50, 140, 150, 240]]
    assert letterbox.to_image(torch.tensor([[50.0, 140.0, 150.0, 240.0]])).tolist() == [[100, 200, 300, 400]]


def test_boxes_in_a_rectangle_by_hand() -> None:
    letterbox = fit_letterbox(480, 640, 320).within(256, 320)  # 240 rows, 8 of grey above and below
    assert (letterbox.pad_left, letterbox.pad_top, letterbox.scale) == (0, 8, 0.5)
    assert letterbox.to_input(np.array([[100.0, 200.0, 300.0, 400.0]])).tolist() == [[50, 108, 150, 208]]
    assert letterbox.to_image(torch.tensor([[50.0, 108.0, 150.0, 208.0]])).tolist() == [[100, 200, 300, 400]]
    odd = fit_letterbox(401, 301, 640).within(640, 512)  # 480 columns
    assert (odd.pad_left, odd.pad_top) == (16, 0)
    square = fit_letterbox(401, 301, 640)
    assert square.within(640, 640) == square


def test_a_rectangle_holds_all_of_its_images_and_no_more_than_a_multiple() -> None:
    landscape, portrait, strip = (fit_letterbox(*sides, 320) for sides in ((480, 640), (640, 480), (10, 320)))
    assert common_rectangle([landscape], 32) == (256, 320)
    assert common_rectangle([landscape, strip], 16) == (240, 320)
    assert common_rectangle([strip], 64) == (64, 320)
    assert common_rectangle([landscape, portrait], 32) == (320, 320)


@given(SIDES, SIDES, st.integers(32, 1280))
def test_the_image_fits_and_fills_one_direction(height: int, width: int, size: int) -> None:
    box = fit_letterbox(height, width, size)
    assert max(box.resized_width, box.resized_height) == size
    assert box.pad_left >= 0
    assert box.pad_top >= 0
    right, below = size - box.resized_width - box.pad_left, size - box.resized_height - box.pad_top
    assert right - box.pad_left in (0, 1)
    assert below - box.pad_top in (0, 1)
    assert box.resized_height == pytest.approx(max(height * box.scale, 1), abs=0.5)


@given(SIDES, SIDES, st.integers(32, 1280), st.lists(st.floats(0, 5000), min_size=4, max_size=4))
def test_boxes_come_back(height: int, width: int, size: int, box: list[float]) -> None:
    letterbox = fit_letterbox(height, width, size)
    for boxes in (np.array([box]), torch.tensor([box], dtype=torch.float64)):
        back = letterbox.to_image(letterbox.to_input(boxes))
        assert type(back) is type(boxes)
        assert np.allclose(np.asarray(back), np.asarray(boxes), atol=1e-6)
