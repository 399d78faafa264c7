"""Colours changed by the loader's workers, and where they are changed if nobody says."""

import sys

import numpy as np
import pytest
import torch

from hvdyolo.config import AugmentConfig
from hvdyolo.data import opencv
from hvdyolo.data.loader import with_colours
from hvdyolo.data.opencv import mirror, scale_colours
from hvdyolo.ops.pixels import prepare_images

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    opencv._opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)


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
    # Many rows: more than are done at once.
    images = random.integers(0, 256, (8, 640, 320, 3), dtype=np.uint8)
    gains = (1 + random.uniform(-1, 1, (8, 3)) * [0.015, 0.7, 0.4]).astype(np.float32)
    flips = np.arange(8) % 2 == 1
    on_device = prepare_images(torch.from_numpy(images), torch.from_numpy(flips), torch.from_numpy(gains))
    expected = 255 * on_device.permute(0, 2, 3, 1).numpy()
    for image, (hue, saturation, value), flip in zip(images, gains.tolist(), flips, strict=True):
        scale_colours(image, (hue, saturation, value))
        if flip:
            mirror(image)
    difference = np.abs(images - expected)
    # Without any change the mean is 33, with the wrong ones mirrored 74. A byte of hue is 2 degrees, or 8 of
    # 255; just under 360 degrees it rounds to 0, which no factor turns: more there.
    assert difference.mean() < 1
    assert np.quantile(difference, 0.999) < 10
    assert difference.max() < 25


def test_a_cpu_s_workers_change_colours() -> None:
    assert with_colours(AugmentConfig(), CPU).colours == "workers"


def test_a_gpu_changes_colours_itself() -> None:
    assert with_colours(AugmentConfig(), GPU).colours == "device"


@pytest.mark.usefixtures("without_opencv")
def test_without_opencv_the_device_changes_colours() -> None:
    assert with_colours(AugmentConfig(), CPU).colours == "device"


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("colours", ["device", "workers"])
def test_what_was_asked_for_stays(colours: str, device: torch.device) -> None:
    settings = AugmentConfig(colours=colours)  # type: ignore[arg-type]
    assert with_colours(settings, device) is settings
