"""Each image has one record, in order, whatever its bytes are."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hvdyolo.data.images import OpenedImage
from hvdyolo.engine.chunk_detection import detect_batch
from hvdyolo.engine.detector import ImageDetections, NetworkInput
from hvdyolo.engine.image_sources import BadImageError, StoredImage
from hvdyolo.engine.parts import Failed, Found
from hvdyolo.ops.letterbox import fit_letterbox


def encode(width: int, height: int, format: str = "PNG", **more: Any) -> bytes:  # noqa: A002
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(stream, format, **more)
    return stream.getvalue()


class Detector:
    """Finds one box, the left upper quarter of every image, to a third of a pixel."""

    max_pixels = 10_000

    def __init__(self) -> None:
        self.batches: list[int] = []

    def fit(self, image: Any) -> NetworkInput:
        height, width = image.shape[:2]
        return NetworkInput(image, fit_letterbox(height, width, 32), height, width)

    def detect(self, inputs: Sequence[NetworkInput]) -> list[ImageDetections]:
        self.batches.append(len(inputs))
        return [
            ImageDetections(
                np.array([[0, 0, item.width / 2, item.height / 3]], np.float32),
                np.array([0.123456789], np.float32),
                np.array([1]),
                ("dog",),
                True,
            )
            for item in inputs
        ]


class Source:
    identity = "test"

    def __init__(self, *images: StoredImage | BadImageError) -> None:
        self.images = images

    def list_names(self) -> list[str]:
        return [f"{number}.png" for number in range(len(self.images))]

    def read(self, index: int, name: str) -> StoredImage:
        image = self.images[index]
        if isinstance(image, BadImageError):
            raise image
        return image


def detect(*images: StoredImage | BadImageError) -> list[Found | Failed]:
    detector: Any = Detector()
    source = Source(*images)
    return detect_batch(detector, source, range(len(images)), source.list_names())


def test_a_record_says_what_was_found_in_short_numbers() -> None:
    assert detect(StoredImage(encode(60, 50), None)) == [
        Found("0.png", 0, 60, 50, [[0.0, 0.0, 30.0, 16.667]], [0.123457], [1], True)
    ]


def test_boxes_of_a_packed_image_refer_to_its_source() -> None:
    (record,) = detect(StoredImage(encode(60, 50), (100, 180)))
    assert isinstance(record, Found)
    assert (record.width, record.height) == (180, 100)
    assert record.boxes_xyxy == [[0.0, 0.0, 90.0, 33.333]]


def test_bad_images_keep_their_place_and_the_others_their_records() -> None:
    good = StoredImage(encode(60, 50), None)
    records = detect(
        good,
        BadImageError("missing", "No such file or directory"),
        StoredImage(b"", None),
        StoredImage(b"some text", None),
        StoredImage(encode(60, 50)[:2000], None),
        StoredImage(encode(101, 100), None),
        good,
    )
    assert [record.id for record in records] == list(range(7))
    assert [record.image for record in records] == [f"{number}.png" for number in range(7)]
    codes = [record.error if isinstance(record, Failed) else "" for record in records]
    assert codes == ["", "missing", "empty", "not_an_image", "broken", "too_large", ""]
    assert records[1] == Failed("1.png", 1, "missing", "No such file or directory")


def test_a_header_of_gigapixels_is_too_large_not_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (record,) = detect(StoredImage(encode(90, 90), None))
    assert isinstance(record, Failed)
    assert record.error == "too_large"


def test_a_png_is_decoded_once_and_a_bomb_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    prepare = PngImageFile.load_prepare

    def watched(image: PngImageFile) -> None:
        decoded.append(image.size)
        prepare(image)

    monkeypatch.setattr(PngImageFile, "load_prepare", watched)
    images = [StoredImage(encode(*size), at) for size in ((60, 50), (200, 51)) for at in (None, (60, 50))]
    records = detect(*images)
    assert [record.error if isinstance(record, Failed) else "" for record in records] == [
        "", "", "too_large", "too_large"
    ]  # fmt: skip
    assert decoded == [(60, 50)] * 2


def test_pixels_that_a_jpeg_has_lost_cost_no_detections() -> None:
    """Its other pixels are there; packing is where it is refused."""
    encoded = encode(60, 50, "JPEG")
    (record,) = detect(StoredImage(encoded[: len(encoded) // 2] + b"\xff\xd9", None))
    assert isinstance(record, Found)


def test_an_image_is_upright_in_files_and_left_alone_in_packed_data() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(60, 50, "JPEG", exif=exif)
    turned, packed = detect(StoredImage(encoded, None), StoredImage(encoded, (50, 60)))
    assert isinstance(turned, Found)
    assert isinstance(packed, Found)
    assert (turned.width, turned.height) == (50, 60)
    assert packed.boxes_xyxy == [[0.0, 0.0, 30.0, 16.667]]


def test_a_decoder_that_stumbles_costs_one_image_and_says_nothing_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stumble(image: OpenedImage, whole: bool) -> None:
        raise RuntimeError(f"in {object()}")

    monkeypatch.setattr(OpenedImage, "load", stumble)
    (record,) = detect(StoredImage(encode(60, 50), None))
    assert record == Failed("0.png", 0, "broken", "RuntimeError")

    def exhaust(image: OpenedImage, whole: bool) -> None:
        raise MemoryError

    monkeypatch.setattr(OpenedImage, "load", exhaust)
    with pytest.raises(MemoryError):
        detect(StoredImage(encode(60, 50), None))


def test_a_batch_of_bad_images_only() -> None:
    assert all(isinstance(record, Failed) for record in detect(StoredImage(b"", None)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_give_the_same_record_every_time(seed: int) -> None:
    random = np.random.default_rng(seed)
    raw = bytearray(encode(60, 50, ("JPEG", "PNG", "TIFF", "WEBP", "BMP")[seed % 5]))
    for position in random.integers(0, len(raw), 40):
        raw[position] ^= int(random.integers(1, 256))
    first = detect(StoredImage(bytes(raw), None))
    assert detect(StoredImage(bytes(raw), None)) == first
    assert len(first) == 1
