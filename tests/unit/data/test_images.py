import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hvdyolo.data.images import (
    _AN_EIGHTH,
    ImageTooLargeError,
    _decode_fast,
    decode,
    decode_upright,
    encode_jpeg,
    open_image,
    resize,
)
from hvdyolo.utils.errors import DataError

PLENTY = 10**6


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("LA", (77, 0), (77, 77, 77)),
        ("I;16", 0x8000, (0x80, 0x80, 0x80)),
        ("I;16", 0xFFFF, (0xFF, 0xFF, 0xFF)),
    ],
)
def test_any_mode_becomes_rgb(mode: str, value: Any, rgb: tuple[int, int, int]) -> None:
    pixels = decode(save(Image.new(mode, (5, 3), value), "PNG"), PLENTY)
    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == rgb).all()


def test_palette_and_print_colours_become_rgb(recwarn: pytest.WarningsRecorder) -> None:
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert (decode(save(palette, "PNG"), PLENTY) == (200, 100, 50)).all()
    assert (decode(save(palette, "PNG", transparency=b"\x00\x80"), PLENTY) == (200, 100, 50)).all()
    cyan = decode(save(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), PLENTY)
    assert (cyan.reshape(-1, 3).mean(0) < (60, 256, 256)).all()
    assert cyan[..., 2].min() > 180
    assert not recwarn.list


def test_pixels_without_a_known_white_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(DataError, match="32 bits"):
            decode(save(Image.new(mode, (4, 4)), "TIFF"), PLENTY)


# The same picture, an L with its corner at the bottom left, stored in each of the eight orientations.
UPRIGHT = np.zeros((3, 2, 3), dtype=np.uint8)
UPRIGHT[:, 0] = UPRIGHT[2] = 255
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation])
    encoded = save(Image.fromarray(stored), "PNG", exif=exif)
    header = open_image(encoded, PLENTY).header
    assert (header.format, header.exif_orientation) == ("PNG", orientation)
    assert (header.height, header.width) == stored.shape[:2]
    assert header.upright_size == (2, 3)
    np.testing.assert_array_equal(decode(encoded, PLENTY), stored)
    np.testing.assert_array_equal(decode_upright(encoded, PLENTY), UPRIGHT)


def test_an_orientation_that_does_not_exist_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    encoded = save(Image.fromarray(UPRIGHT), "PNG", exif=exif)
    assert open_image(encoded, PLENTY).header.exif_orientation == 1


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a size it has no pixels for."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IEND", b"")


@pytest.fixture
def decoded_pngs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """PNGs whose pixels are decoded from now on, once for each time."""
    decoded: list[Any] = []
    prepare = PngImageFile.load_prepare

    def watched(image: PngImageFile) -> None:
        decoded.append(image.size)
        prepare(image)

    monkeypatch.setattr(PngImageFile, "load_prepare", watched)
    return decoded


@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0"}])
def test_of_a_bomb_no_pixel_is_decoded(options: dict[str, Any], decoded_pngs: list[Any]) -> None:
    """It is whole: whoever decodes it sees no error, only its size too late."""
    bomb = save(Image.new("L", (1001, 1000)), "PNG", **options)
    for read in (decode, decode_upright, open_image):
        with pytest.raises(ImageTooLargeError, match="1001 x 1000 pixels, more than the limit of 1000000"):
            read(bomb, PLENTY)
    assert decoded_pngs == []
    assert decode(bomb, 1001 * 1000).shape == (1000, 1001, 3)
    assert decoded_pngs == [(1001, 1000)]  # it would have been seen


def test_icons_are_refused_undecoded(decoded_pngs: list[Any]) -> None:
    """Theirs is another size than that of the PNG in them."""
    with pytest.raises(DataError, match="is an icon"):
        open_image(save(Image.new("L", (64, 64)), "ICO"), PLENTY)
    assert decoded_pngs == []


def test_pillows_own_limit_is_told_as_ours() -> None:
    with pytest.raises(ImageTooLargeError):
        decode(png_header(100_000, 100_000), 10**12)


@pytest.mark.parametrize("place", ["before", "behind", "nowhere"])
def test_the_orientation_of_a_png_is_found_wherever_it_is_and_pixels_are_decoded_once(
    place: str, decoded_pngs: list[Any]
) -> None:
    encoded = save(Image.fromarray(np.ascontiguousarray(STORED[6])), "PNG")
    chunk = png_chunk(b"eXIf", turned_exif().tobytes().removeprefix(b"Exif\0\0"))
    at = {"before": encoded.index(b"IDAT") - 4, "behind": encoded.index(b"IEND") - 4, "nowhere": 0}[place]
    if at:
        encoded = encoded[:at] + chunk + encoded[at:]
    expected = UPRIGHT if at else STORED[6]
    np.testing.assert_array_equal(decode_upright(encoded, PLENTY), expected)
    assert len(decoded_pngs) == 1
    opened = open_image(encoded, PLENTY)
    assert opened.header.exif_orientation == (6 if at else 1)
    assert len(decoded_pngs) == (1 if place == "before" else 2)
    opened.check()
    opened.load(whole=True)
    assert len(decoded_pngs) == 2


def test_the_limit_itself_is_allowed() -> None:
    assert decode(save(Image.new("RGB", (100, 10)), "PNG"), 1000).shape == (10, 100, 3)


@pytest.mark.parametrize("encoded", [b"", b"\0", b"GIF89a", b"not an image at all", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_told(encoded: bytes) -> None:
    for function in (open_image, decode):
        with pytest.raises(DataError, match=r"is not an image|cannot be"):
            function(encoded, PLENTY)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damaged_images_raise_data_errors_and_nothing_else(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    good = save(Image.fromarray(pixels), kind)
    random = np.random.default_rng(1)
    for trial in range(150):
        raw = bytearray(good)
        for place in random.integers(0, len(raw), 4):
            raw[place] = random.integers(256)
        encoded = bytes(raw[: random.integers(len(raw))] if trial % 3 == 0 else raw)
        with suppress(DataError):
            decode_upright(encoded, PLENTY)


def test_a_truncated_jpeg_is_not_filled_with_grey(encode: Any) -> None:
    encoded = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(encoded[: len(encoded) // 2], PLENTY)


@cache
def jpegs() -> list[bytes]:
    """One picture as many kinds of JPEG, of odd sides."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((97, 61))
    kinds: list[dict[str, Any]] = [
        {"quality": 30}, {"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"subsampling": 2},
        {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}, {"exif": b"Exif\0\0"},
    ]  # fmt: skip
    encoded = [save(picture, "JPEG", **options) for options in kinds]
    return [*encoded, save(picture.convert("L"), "JPEG"), save(picture.convert("CMYK"), "JPEG")]


def decoded_by_pillow(encoded: bytes) -> NDArray[np.uint8] | str:
    try:
        image = Image.open(io.BytesIO(encoded))
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        return str(error)


def test_the_fast_decoder_gives_pillows_bits_whatever_the_kind_of_jpeg() -> None:
    fast = [_decode_fast(encoded, PLENTY) for encoded in jpegs()]
    # Inks, the last kind, are left to Pillow.
    assert [pixels is None for pixels in fast] == [False] * (len(fast) - 1) + [True]
    for encoded, pixels in zip(jpegs(), fast, strict=True):
        expected = decoded_by_pillow(encoded)
        assert np.array_equal(decode(encoded, PLENTY), expected)
        assert np.array_equal(open_image(encoded, PLENTY).load(whole=True).pixels(upright=True), expected)
        assert pixels is None or pixels.shape == (61, 97, 3)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_of_damaged_jpegs_too_the_decoders_say_the_same(data: st.DataObject) -> None:
    encoded = bytearray(data.draw(st.sampled_from(jpegs())))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(2, len(encoded) - 1))
        encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    del encoded[data.draw(st.just(len(encoded)) | st.integers(4, len(encoded))) :]
    pixels = _decode_fast(bytes(encoded), PLENTY)
    # What packing looks at says the same of every one.
    assert (_decode_fast(bytes(encoded), PLENTY, **_AN_EIGHTH) is None) == (pixels is None)
    if pixels is not None:
        assert np.array_equal(pixels, decoded_by_pillow(bytes(encoded)))


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except DataError as error:
        return str(error)
    return ""


def test_a_check_says_what_loading_says(encode: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    turned = save(Image.fromarray(noise), "JPEG", exif=turned_exif())
    for good in [*jpegs(), turned, encode(noise, "PNG")]:
        for encoded in (good, good[:-20], good[: len(good) * 3 // 4]):
            image, same = open_image(encoded, PLENTY), open_image(encoded, PLENTY)
            found = refusal(image.check)
            assert found == refusal(lambda same=same: same.load(whole=True))
            assert found == "" or encoded is not good
        assert "cannot be decoded" in found


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_the_fast_decoder_too_refuses_by_the_header() -> None:
    encoded = save(Image.new("RGB", (100, 50)), "JPEG")
    assert decode(encoded, 5000).shape == (50, 100, 3)
    with pytest.raises(ImageTooLargeError, match="100 x 50 pixels"):
        decode(encoded, 4999)


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    """Shrinking by two with the triangle rule: weights 1, 3, 3, 1 of 8 on the four nearest pixels."""
    row = np.array([0, 0, 80, 160, 0, 0], dtype=np.uint8)
    image = np.repeat(np.repeat(row[None, :, None], 6, 0), 3, 2)
    shrunk = resize(image, 3, 6)
    # The middle pixel sees columns 1 … 4: 0, 80, 160, 0.
    assert shrunk[0, 1, 0] == (1 * 0 + 3 * 80 + 3 * 160 + 1 * 0) / 8
    enlarged = resize(image[:, 2:4], 4, 6)
    assert enlarged[0, :, 0].tolist() == [80, 100, 140, 160]


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert resize(image, 9, 7) is image


def test_a_jpeg_keeps_its_colours_at_full_resolution() -> None:
    """Red and blue columns, one pixel wide, would become purple with subsampled colours."""
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[:, 0::2, 0] = image[:, 1::2, 2] = 255
    decoded = decode(encode_jpeg(image, 100), PLENTY).astype(int)
    assert abs(decoded - image).mean() < 3
    assert len(encode_jpeg(image, 50)) < len(encode_jpeg(image, 95))


def test_a_coarse_decoder_repeats_colours_where_a_fine_one_interpolates_them() -> None:
    """Half red, half blue: what is between them shows as far as a colour of half the resolution reaches."""
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :31] = (200, 0, 0)
    pixels[:, 31:] = (0, 0, 200)
    encoded = save(Image.fromarray(pixels), "JPEG", quality=95, subsampling="4:2:0")
    fine, coarse = (decode(encoded, PLENTY, coarse=coarse).astype(int) for coarse in (False, True))
    # Colours alone: red less blue is free of brightness but for what is clipped.
    fine_step, coarse_step = (np.abs(np.diff(image[16, :, 0] - image[16, :, 2])) for image in (fine, coarse))
    pairs = coarse_step[::2]  # within the columns 0 and 1, 2 and 3, …, which share a colour
    assert pairs.max() < fine_step[::2].max() / 2
    assert np.abs(fine - coarse)[:, :24].max() <= 4  # elsewhere it is the transform's rounding


def test_what_is_no_jpeg_has_no_coarse_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    encoded = save(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode(encoded, PLENTY, coarse=True), decode(encoded, PLENTY))
