"""Colours changed by the loader's workers, and where they are changed if nobody says."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdyolo.config import AugmentConfig
from hvdyolo.data.loader import check_packages, with_colours
from hvdyolo.ops import compiled as module
from hvdyolo.ops.colours import mirror, scale_colours
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.utils.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def without_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_NATIVE", tmp_path)
    module.compiled.cache_clear()
    yield
    module.compiled.cache_clear()


@pytest.mark.parametrize(
    ("pixel", "gains", "expected"),
    [
        pytest.param((100, 100, 100), (1.0, 1.0, 1.4), (140, 140, 140), id="grey gets brighter"),
        pytest.param((200, 200, 200), (1.0, 1.0, 1.4), (255, 255, 255), id="no brighter than white"),
        pytest.param((100, 100, 100), (1.0, 1.7, 1.0), (100, 100, 100), id="grey has no saturation"),
        pytest.param((200, 100, 100), (1.0, 0.5, 1.0), (200, 150, 150), id="half as saturated"),
        pytest.param((200, 100, 100), (1.0, 3.0, 1.0), (200, 0, 0), id="no more than saturated"),
        pytest.param((0, 200, 0), (1.5, 1.0, 1.0), (0, 200, 200), id="120 to 180 degrees"),
        pytest.param((0, 0, 200), (1.75, 1.0, 1.0), (200, 200, 0), id="240 to 420, that is 60 degrees"),
    ],
)
def test_colours_by_hand(
    pixel: tuple[int, int, int], gains: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    image = np.full((3, 5, 3), pixel, dtype=np.uint8)
    scale_colours(image, gains)
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_workers_and_device_agree() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 640, 320, 3), dtype=np.uint8)
    gains = (1 + random.uniform(-1, 1, (8, 3)) * [0.015, 0.7, 0.4]).astype(np.float32)
    flips = np.arange(8) % 2 == 1
    on_device = prepare_images(torch.from_numpy(images), torch.from_numpy(flips), torch.from_numpy(gains))
    expected = 255 * on_device.permute(0, 2, 3, 1).numpy()
    for image, (hue, saturation, value), flip in zip(images, gains.tolist(), flips, strict=True):
        scale_colours(image, (hue, saturation, value))
        if flip:
            mirror(image)
    # Rounded once: half a step, and what single precision loses.
    assert np.abs(images - expected).max() < 0.501


@pytest.mark.parametrize("pixels", [1, 7, 511, 512, 513, 1100])
def test_every_pixel_is_changed_and_none_beside(pixels: int) -> None:
    # Alone as among others; two pixels of the row before and after are not the image's.
    row = np.random.default_rng(pixels).integers(0, 256, (1, pixels + 4, 3), dtype=np.uint8)
    before, image = row.copy(), row[:, 2:-2]
    single = np.concatenate([changed(image[:, i : i + 1].copy()) for i in range(pixels)], axis=1)
    scale_colours(image, GAINS)
    assert np.array_equal(image, single)
    assert np.array_equal(row[:, :2], before[:, :2])
    assert np.array_equal(row[:, -2:], before[:, -2:])


GAINS = (1.01, 1.3, 0.8)


def changed(image: np.ndarray) -> np.ndarray:
    scale_colours(image, GAINS)
    return image


def test_no_gain_changes_no_byte() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    every = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    image = every.copy()
    scale_colours(image, (1.0, 1.0, 1.0))
    assert np.array_equal(image, every)


@pytest.mark.parametrize("width", [1, 2, 3, 640, 641])
def test_a_mirror_image(width: int) -> None:
    image = np.random.default_rng(width).integers(0, 256, (5, width, 3), dtype=np.uint8)
    expected = image[:, ::-1].copy()
    mirror(image)
    assert np.array_equal(image, expected)


@pytest.mark.parametrize("image", [np.zeros((4, 8, 3), np.uint8)[:, ::2], np.zeros((4, 8, 3), np.float32)])
def test_what_is_not_one_piece_of_bytes_is_not_touched(image: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        mirror(image)
    with pytest.raises(AssertionError):
        scale_colours(image, GAINS)


def test_a_cpu_s_workers_change_colours() -> None:
    assert with_colours(AugmentConfig(), CPU).colours == "workers"


def test_a_gpu_changes_colours_itself() -> None:
    assert with_colours(AugmentConfig(), GPU).colours == "device"


@pytest.mark.usefixtures("without_functions")
def test_without_compiled_functions_the_device_changes_colours() -> None:
    assert with_colours(AugmentConfig(), CPU).colours == "device"


@pytest.mark.usefixtures("without_functions")
@pytest.mark.parametrize("setting", ["colours workers", "resampling bilinear"])
def test_what_needs_compiled_functions_is_refused_without(setting: str) -> None:
    name, value = setting.split()
    with pytest.raises(UsageError, match=rf"augment\.{setting} .* compiler"):
        check_packages(AugmentConfig(**{name: value}))


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("colours", ["device", "workers"])
def test_what_was_asked_for_stays(colours: str, device: torch.device) -> None:
    settings = AugmentConfig(colours=colours)  # type: ignore[arg-type]
    assert with_colours(settings, device) is settings
