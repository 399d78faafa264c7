"""The first rows of a JPEG, decoded without the rest."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data.images import decode, decode_top

PLENTY = 1 << 20
HEIGHT, WIDTH = 75, 53  # neither a multiple of a block

GRAIN = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encode(mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GRAIN).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


EXIF = Image.Exif()
EXIF[0x010E] = "the header has segments before its frame" * 20

SEQUENTIAL = {
    "4:4:4": encode(subsampling="4:4:4"),
    "4:2:2": encode(subsampling="4:2:2"),
    "4:2:0": encode(subsampling="4:2:0"),
    "own tables": encode(optimize=True),
    "grey": encode("L"),
    "restart markers": encode(restart_marker_rows=1),
    "restart markers in a row": encode(restart_marker_blocks=2),
    "segments before": encode(exif=EXIF, comment=b"and a comment"),
}


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("encoded", SEQUENTIAL.values(), ids=SEQUENTIAL)
def test_the_first_rows_are_those_of_the_whole(encoded: bytes, coarse: bool) -> None:
    whole = decode(encoded, PLENTY, coarse=coarse)
    for rows in range(1, HEIGHT - 2):
        top = decode_top(memoryview(encoded), PLENTY, (HEIGHT, WIDTH), rows, coarse=coarse)
        assert top is not None
        assert rows <= len(top) < HEIGHT
        np.testing.assert_array_equal(top[:rows], whole[:rows])


@pytest.mark.parametrize("rows", [HEIGHT - 2, HEIGHT, HEIGHT + 9])
def test_nearly_all_rows_are_not_worth_it(rows: int) -> None:
    assert decode_top(SEQUENTIAL["4:2:0"], PLENTY, (HEIGHT, WIDTH), rows) is None


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(encode(progressive=True), id="progressive"),
        pytest.param(encode("CMYK"), id="inks"),
        pytest.param(SEQUENTIAL["4:2:0"][:40], id="cut in its header"),
        pytest.param(b"\xff\xd8\xff\xe0\0\0" * 30, id="segments without length"),
        pytest.param(b"\x89PNG" + bytes(100), id="no JPEG"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_no_ordinary_jpeg_is_left_to_others(encoded: bytes) -> None:
    assert decode_top(encoded, PLENTY, (HEIGHT, WIDTH), 10) is None


@pytest.mark.parametrize("size", [(HEIGHT + 1, WIDTH), (HEIGHT, WIDTH - 1), (WIDTH, HEIGHT)])
def test_an_image_of_another_size_is_left_to_others(size: tuple[int, int]) -> None:
    assert decode_top(SEQUENTIAL["4:2:0"], PLENTY, size, 10) is None


def test_the_limit_counts_all_pixels() -> None:
    assert decode_top(SEQUENTIAL["4:2:0"], HEIGHT * WIDTH - 1, (HEIGHT, WIDTH), 10) is None
    assert decode_top(SEQUENTIAL["4:2:0"], HEIGHT * WIDTH, (HEIGHT, WIDTH), 10) is not None
