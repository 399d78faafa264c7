"""Resizing for the network against Pillow's."""

import warnings

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data.images import resize
from hvdyolo.data.resizing import letterbox_image, resize_triangle
from hvdyolo.ops.letterbox import fit_letterbox


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(43, 64), (10, 150), (100, 15), (130, 200), (1, 1), (100, 75)])
def test_it_is_pillow_s_bilinear_resize(height: int, width: int) -> None:
    image = noise(100, 150)
    found = np.empty((height, width, 3), dtype=np.uint8)
    resize_triangle(image, found)
    difference = np.abs(found.astype(int) - resize(image, width, height))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_parts_of_arrays_are_resized_alike_and_leave_the_rest_alone() -> None:
    image, canvas = noise(100, 150), np.zeros((50, 60, 3), dtype=np.uint8)
    part = image[10:70, 20:120]
    part.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of arrays that are not writable, torch warns
        resize_triangle(part, canvas[5:35, 7:57])
    expected = np.asarray(Image.fromarray(part).resize((50, 30), Image.Resampling.BILINEAR))
    assert np.abs(canvas[5:35, 7:57].astype(int) - expected).max() <= 1
    canvas[5:35, 7:57] = 0
    assert not canvas.any()


def test_a_letterbox_is_grey_around_the_resized_image() -> None:
    image = np.full((20, 40, 3), 255, dtype=np.uint8)
    boxed = letterbox_image(image, fit_letterbox(20, 40, 32))
    assert boxed.shape == (32, 32, 3)
    assert (boxed[:8] == 114).all()
    assert (boxed[8:24] == 255).all()
    assert (boxed[24:] == 114).all()
