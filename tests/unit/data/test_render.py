"""Pixels of samples: what each way to resample does, and that all see the same picture."""

import sys

import numpy as np
import pytest
from drawn_objects import RESAMPLINGS, picture, renderer_of
from PIL import Image

from hvdyolo.data import opencv
from hvdyolo.data.picture import paint
from hvdyolo.data.placement import Homography, Matrix, shift
from hvdyolo.data.render import Renderer, renderer
from hvdyolo.ops.letterbox import FILL
from hvdyolo.utils.errors import UsageError

SIZE = 64


def cloud(seed: int = 0, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Without edges, so that all ways to resample agree."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


class OneImage:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return 1

    def size(self, index: int) -> tuple[int, int]:
        return self.pixels.shape[:2]

    def image(self, index: int, rows: int) -> np.ndarray:
        return self.pixels[:rows]

    def labels(self, index: int) -> np.ndarray:
        return np.empty((0, 5), dtype=np.float32)


def painted(pixels: np.ndarray, rendering: Renderer, count: int = 1, **homography: float) -> np.ndarray:
    output = np.full((SIZE, SIZE, 3), 7, dtype=np.uint8)
    paint(OneImage(pixels), picture((0,) * count, **homography), rendering, output)
    return output


def warps() -> list:
    return [
        pytest.param("triangle", id="pillow"),
        pytest.param("bilinear", id="opencv"),
    ]


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_an_image_of_the_output_s_size_is_copied(resampling: str) -> None:
    np.testing.assert_array_equal(painted(cloud(), renderer_of(resampling)), cloud())


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_a_shift_by_whole_pixels_is_exact_and_leaves_grey(resampling: str) -> None:
    found = painted(cloud(), renderer_of(resampling), centre_x=0.75, centre_y=0.25)
    np.testing.assert_array_equal(found[:48, 16:], cloud()[16:, :48])
    assert (found[48:] == FILL).all()
    assert (found[:, :16] == FILL).all()


def test_triangle_is_pillow_s_bilinear_resize() -> None:
    image = np.random.default_rng(1).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    found = painted(image, renderer_of("triangle"))
    resized = np.asarray(Image.fromarray(image).resize((64, 43), Image.Resampling.BILINEAR))
    assert np.abs(found[10:53].astype(int) - resized).max() <= 1
    assert (found[:10] == FILL).all()
    assert (found[53:] == FILL).all()


def test_bilinear_looks_at_two_pixels_only() -> None:
    # Shrunk to a third, the middle one of three pixels is all that counts.
    image = np.zeros((3 * SIZE, 3 * SIZE, 3), dtype=np.uint8)
    image[1::3, 1::3] = 90
    assert (painted(image, renderer_of("bilinear")) == 90).all()
    assert painted(image, renderer_of("triangle")).max() < 20


HOMOGRAPHIES = {
    "zoom": {"zoom": 0.8},
    "rotation": {"rotation": 30.0},
    "shear": {"shear_x": 10.0, "shear_y": -15.0, "centre_x": 0.6},
    "perspective": {"perspective_x": 0.25, "perspective_y": -0.2},
    "all": {"zoom": 1.3, "rotation": -70.0, "shear_x": 5.0, "perspective_x": -0.15, "perspective_y": 0.1},
}


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("motion", HOMOGRAPHIES)
@pytest.mark.parametrize("resampling", ["bilinear", "exact"])
def test_all_see_the_same_picture(resampling: str, motion: str, count: int) -> None:
    image = cloud(2, 150, 200)
    first = painted(image, renderer_of("triangle"), count, **HOMOGRAPHIES[motion]).astype(int)
    second = painted(image, renderer_of(resampling), count, **HOMOGRAPHIES[motion]).astype(int)
    difference = np.abs(first - second).max(-1)
    # Edges of images apart, where a whole step may be half a pixel off.
    assert np.median(difference) <= 2
    assert (difference > 12).mean() < 0.12


@pytest.mark.parametrize("resampling", warps())
def test_warps_count_pixels_from_their_edges(resampling: str) -> None:
    warp, image = renderer_of(resampling).warp, cloud()
    target = np.empty_like(image)
    warp(image, shift(3, -5), target)
    np.testing.assert_array_equal(target[:-5, 3:], image[5:, :-3])
    assert (target[-5:] == FILL).all()
    quarter = shift(SIZE / 2, SIZE / 2) @ turn(90.0) @ shift(-SIZE / 2, -SIZE / 2)
    warp(image, quarter, target)
    np.testing.assert_allclose(target, np.rot90(image), atol=1)


@pytest.mark.parametrize("resampling", warps())
def test_warps_under_perspective_put_pixels_where_points_go(resampling: str) -> None:
    matrix = Homography(perspective_x=0.25, perspective_y=0.2).perspective(SIZE)
    # A ramp shows in each pixel where it comes from.
    ramp = np.repeat(np.arange(SIZE, dtype=np.uint8)[None, :, None] * 3, SIZE, axis=0).repeat(3, axis=2)
    target = np.empty_like(ramp)
    renderer_of(resampling).warp(np.ascontiguousarray(ramp), matrix, target)
    for x, y in ((10, 10), (32, 50), (50, 20), (55, 55)):
        source = np.linalg.inv(matrix) @ [x + 0.5, y + 0.5, 1]
        assert abs(int(target[y, x, 0]) - 3 * (source[0] / source[2] - 0.5)) <= 1.5


def turn(degrees: float) -> Matrix:
    matrix = np.eye(3)
    matrix[:2, :2] = Homography(rotation=degrees).turn
    return matrix


@pytest.mark.parametrize("resampling", ["bilinear", "exact"])
def test_without_opencv_it_is_said_how_to_get_it(resampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opencv._opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=rf"augment\.resampling {resampling} needs OpenCV.*pip install"):
        renderer(resampling)
    renderer("triangle")
    opencv._opencv.cache_clear()
