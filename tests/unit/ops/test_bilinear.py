"""Resizing between the two nearest pixels each way."""

import ctypes
import mmap

import numpy as np
import pytest

from hvdyolo.ops.bilinear import resize_bilinear

# A share of a pixel is rounded to 1/128, which moves a value by a 256th of 255 at most; then it is rounded.
FARTHEST = 255 / 256 + 0.5 + 0.01


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resized into the middle of memory that must not change around it."""
    around = np.full((height + 2, width + 2, 3), 7, dtype=np.uint8)
    resize_bilinear(image, around[1:-1, 1:-1])
    inside = around[1:-1, 1:-1].copy()
    around[1:-1, 1:-1] = 7
    assert (around == 7).all()
    return inside


def exact(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """In double precision: the centre of target pixel i is at (i + 1/2) length / new length - 1/2."""
    found = image.astype(float)
    for axis, new in ((0, height), (1, width)):
        length = image.shape[axis]
        at = ((np.arange(new) + 0.5) * length / new - 0.5).clip(0, length - 1)
        first = np.floor(at).astype(int)
        second = np.minimum(first + 1, length - 1)
        share = (at - first).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        found = (1 - share) * found.take(first, axis) + share * found.take(second, axis)
    return found


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param([0, 100], [0, 25, 75, 100], id="doubled"),
        pytest.param([10, 20, 30, 50], [15, 40], id="halved"),
        pytest.param([0, 90, 0, 0, 60, 0], [90, 60], id="a third: the middle pixels alone"),
        pytest.param([9], [9, 9, 9], id="one pixel"),
        pytest.param([0, 255], [0, 64, 191, 255], id="from black to white"),
    ],
)
def test_by_hand(row: list[int], expected: list[int]) -> None:
    across = np.repeat(np.array(row, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(5, axis=0)
    found = resized(across, 5, len(expected))
    assert (found == np.array(expected)[None, :, None]).all()
    down = np.ascontiguousarray(across.transpose(1, 0, 2))
    assert (resized(down, len(expected), 5) == np.array(expected)[:, None, None]).all()


LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 33, 100, 257]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("new", LENGTHS)
def test_near_exact_arithmetic(length: int, new: int) -> None:
    # Nothing but edges: the worst there is for shares that are rounded.
    random = np.random.default_rng([length, new])
    image = (random.integers(0, 2, (11, length, 3)) * 255).astype(np.uint8)
    assert np.abs(resized(image, 13, new) - exact(image, 13, new)).max() <= FARTHEST
    image = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert np.abs(resized(image, new, 13) - exact(image, new, 13)).max() <= FARTHEST


@pytest.mark.parametrize("size", [(480, 640), (331, 500), (641, 203)])
def test_near_opencv(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is what is compared with: pip install 'hvdyolo[opencv]'")
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    height, width = size
    difference = np.abs(resized(image, height, width) - cv2.resize(image, (width, height)).astype(int))
    assert difference.max() <= 2  # each rounds in its own way
    assert difference.mean() < 0.25


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_one_colour_stays(level: int) -> None:
    image = np.full((37, 53, 3), level, dtype=np.uint8)
    assert (resized(image, 91, 40) == level).all()


def test_part_of_a_larger_image() -> None:
    # With neighbours that would show.
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    part = image[20:70, 30:97]
    assert np.array_equal(resized(part, 64, 64), resized(part.copy(), 64, 64))


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 16, 100])
@pytest.mark.parametrize("new", [1, 3, 40, 250])
def test_nothing_beyond_the_image_is_read(width: int, new: int) -> None:
    """It ends where memory that may be read ends, and begins where it begins."""
    pages = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for page in (0, 2):
        assert _libc().mprotect(start + page * mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    count = 3 * width * 4
    for first in (mmap.PAGESIZE, 2 * mmap.PAGESIZE - count):
        image = np.frombuffer(pages, np.uint8, count, first).reshape(4, width, 3)
        image[...] = 9
        assert (resized(image, 6, new) == 9).all()


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 8, 3), np.uint8)[:, ::2], np.zeros((4, 8, 3), np.float32), np.zeros((4, 8), np.uint8)],
)
def test_what_are_not_rows_of_bytes_is_not_touched(image: np.ndarray) -> None:
    whole = np.zeros((9, 9, 3), dtype=np.uint8)
    with pytest.raises(AssertionError):
        resize_bilinear(image, whole)
    with pytest.raises(AssertionError):
        resize_bilinear(whole, image)
