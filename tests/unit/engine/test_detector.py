"""Boxes come back in the image's pixels, for every way an image is given."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from hvdyolo import Detector
from hvdyolo.models.build import build_model, save_model
from hvdyolo.utils.errors import DataError, UsageError

SIZE = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, with scores from end to end."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    torch.manual_seed(0)
    model = build_model("yolov5n", 2, names=["cat", "dog"])
    for convolution in model.head.m:
        nn.init.normal_(convolution.weight)
        nn.init.normal_(convolution.bias)
    model.image_size = SIZE
    save_model(model, path)
    return path


class Says(nn.Module):
    """A network that finds the same on every image, and remembers what it was shown."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.shown.append(images)
        return self.rows.expand(len(images), -1, -1), []


def detector_that_says(weights: Path, *rows: list[float], **settings: Any) -> Detector:
    """``rows`` are cx, cy, w, h in pixels of the input, objectness and the probabilities of cat and dog."""
    detector = Detector(weights, **settings)
    detector._model = Says(*rows)  # type: ignore[assignment]
    return detector


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_boxes_are_in_pixels_of_the_image(weights: Path) -> None:
    # 32 x 128 pixels become 16 x 64, with 24 rows of grey above and below.
    detector = detector_that_says(weights, [32, 32, 16, 8, 0.9, 0.1, 0.8])
    (found,) = detector(picture(32, 128))
    np.testing.assert_allclose(found.boxes_xyxy, [[48, 8, 80, 24]])
    np.testing.assert_allclose(found.scores, [0.72])
    assert found.labels.tolist() == [1]
    assert found.names == ("dog",)
    assert found.boxes_xyxy.dtype == np.float32
    assert not found.capped


def test_boxes_are_cut_at_the_image_and_those_beside_it_dropped(weights: Path) -> None:
    detector = detector_that_says(
        weights,
        [0, 32, 20, 100, 0.9, 1, 0],  # over the left side, the top and the bottom
        [32, 10, 16, 8, 0.8, 1, 0],  # in the grey above
    )
    (found,) = detector(picture(32, 128))
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 0, 20, 32]])


def test_the_network_sees_the_letterboxed_image(weights: Path) -> None:
    detector = detector_that_says(weights, [0, 0, 0, 0, 0, 0, 0])
    image = np.full((32, 128, 3), (255, 0, 51), np.uint8)
    detector([image])
    (shown,) = detector._model.shown  # type: ignore[union-attr]
    assert shown.shape == (1, 3, SIZE, SIZE)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(shown[0, :, 24:40].amin((1, 2)), [1, 0, 0.2])
    np.testing.assert_allclose(shown[0, :, 24:40].amax((1, 2)), [1, 0, 0.2])
    np.testing.assert_allclose(shown[0, :, :24], 114 / 255)


def test_confidence_and_iou_decide(weights: Path) -> None:
    rows = ([30, 30, 20, 20, 0.9, 1, 0], [32, 30, 20, 20, 0.6, 1, 0], [50, 50, 8, 8, 0.3, 1, 0])
    image = picture(SIZE, SIZE)  # the overlap of the first two is 18/22

    def scores(**settings: Any) -> list[float]:
        (found,) = detector_that_says(weights, *rows, **settings)(image)
        return [round(float(score), 3) for score in found.scores]

    assert scores() == [0.9, 0.3]
    assert scores(iou=0.9) == [0.9, 0.6, 0.3]
    assert scores(confidence=0.5) == [0.9]
    (found,) = detector_that_says(weights, *rows, max_boxes=1)(image)
    assert found.capped
    assert len(found.scores) == 1


def test_files_and_arrays_of_any_number_give_the_same(weights: Path, tmp_path: Path) -> None:
    images = [picture(20 + 9 * number, 70, seed=number) for number in range(5)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    detector = Detector(weights, batch=2)
    from_arrays = detector(images)
    assert len(from_arrays) == 5
    assert sum(len(found.scores) for found in from_arrays) > 5
    for same in (detector(paths), detector([str(path) for path in paths])):
        for a, b in zip(from_arrays, same, strict=True):
            np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
            np.testing.assert_array_equal(a.scores, b.scores)
    (alone,) = detector(paths[4])
    np.testing.assert_allclose(alone.boxes_xyxy, from_arrays[4].boxes_xyxy, atol=1e-2)
    assert detector([]) == []
    for found, image in zip(from_arrays, images, strict=True):
        height, width = image.shape[:2]
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy[:, 2:] <= [width, height]).all()
        assert (np.diff(found.scores) <= 0).all()
        assert found.names == tuple(("cat", "dog")[label] for label in found.labels)


def test_a_photograph_is_seen_as_its_orientation_says(weights: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((32, 128, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter: 128 high, 32 wide
    image.save(tmp_path / "turned.jpg", exif=exif)
    detector = detector_that_says(weights, [32, 32, 8, 16, 0.9, 1, 0])
    (found,) = detector(tmp_path / "turned.jpg")
    np.testing.assert_allclose(found.boxes_xyxy, [[8, 48, 24, 80]])


def test_threads_get_what_one_after_the_other_gives(weights: Path) -> None:
    detector = Detector(weights)
    batches = [[detector.fit(picture(40, 60, seed)) for seed in range(n, n + 4)] for n in range(8)]
    expected = [detector.detect(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for batch, together in zip(expected, pool.map(detector.detect, batches), strict=True):
            for a, b in zip(batch, together, strict=True):
                np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
                np.testing.assert_array_equal(a.scores, b.scores)


def test_the_size_can_be_chosen(weights: Path) -> None:
    assert Detector(weights).image_size == SIZE
    detector = Detector(weights, image_size=96)
    assert detector.fit(picture(10, 20)).pixels.shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 100}, "multiple of 32"),
        ({"image_size": 0}, "multiple of 32"),
        ({"confidence": 1.5}, r"0 … 1, not 1\.5"),
        ({"iou": -0.1}, "0 … 1"),
        ({"max_boxes": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_senseless_settings_are_refused(weights: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Detector(weights, **settings)


def test_weights_that_cannot_find_anything_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights file"):
        Detector(tmp_path / "none.safetensors")
    model = build_model("yolov5n", 2)
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = float("nan")
    save_model(model, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match=r"model\.0\.conv\.weight"):
        Detector(tmp_path / "nan.safetensors")


def test_what_is_no_image_is_refused_by_name(weights: Path, tmp_path: Path) -> None:
    detector = Detector(weights)
    (tmp_path / "text.jpg").write_text("hello")
    stream = io.BytesIO()
    Image.fromarray(picture(32, 32)).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:-1000])
    with pytest.raises(DataError, match=r"text\.jpg"):
        detector(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"cut\.png"):
        detector(tmp_path / "cut.png")
    with pytest.raises(UsageError, match=r"none\.jpg"):
        detector(tmp_path / "none.jpg")
    Image.fromarray(picture(32, 32)).save(tmp_path / "large.png")
    careful = Detector(weights, max_pixels=1000)
    with pytest.raises(DataError, match="32 x 32"):
        careful(tmp_path / "large.png")
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))):
        with pytest.raises(UsageError, match="uint8 of shape"):
            detector([array])  # type: ignore[list-item]
