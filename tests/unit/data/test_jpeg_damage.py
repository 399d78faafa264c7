"""Damage that costs pixels is told; what is odd about a JPEG otherwise is not."""

import io
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from hvdyolo.data.images import DamagedImageError, open_image
from hvdyolo.utils.errors import DataError

PLENTY = 10**6
END = b"\xff\xd9"

KINDS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "subsampled": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "grey": {"mode": "L"},
    "inks": {"mode": "CMYK"},
    "untransformed": {"keep_rgb": True},
}


@cache
def jpeg(kind: str) -> bytes:
    options = dict(KINDS[kind])
    coarse = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((97, 61)).convert(options.pop("mode", "RGB"))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def cut_in_half(encoded: bytes) -> bytes:
    """Without the second half of its first scan and what comes after, and with an end."""
    start = encoded.index(b"\xff\xda")
    rest = re.search(rb"\xff[^\x00\xd0-\xd7]", encoded[start + 2 :])
    assert rest is not None
    return encoded[: start + 2 + rest.start() // 2].rstrip(b"\xff") + END


def refusal(encoded: bytes) -> DataError | None:
    """By the check and by loading, which must agree."""
    found: list[DataError | None] = []
    for look in (lambda image: image.check(), lambda image: image.load(whole=True)):
        try:
            look(open_image(encoded, PLENTY))
            found.append(None)
        except DataError as error:
            found.append(error)
    check, load = found
    assert (type(check), str(check)) == (type(load), str(load))
    return check


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_and_ended_is_damaged(kind: str) -> None:
    assert refusal(jpeg(kind)) is None
    error = refusal(cut_in_half(jpeg(kind)))
    assert isinstance(error, DamagedImageError)
    assert str(error) == "is damaged: Corrupt JPEG data: premature end of data segment"
    # Whoever only looks at it gets what is there.
    pixels = open_image(cut_in_half(jpeg(kind)), PLENTY).load(whole=False).pixels(upright=True)
    whole = open_image(jpeg(kind), PLENTY).load(whole=True).pixels(upright=True)
    if kind != "progressive":
        assert np.array_equal(pixels[:8], whole[:8])
    assert not np.array_equal(pixels, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_only_cut_is_unreadable(kind: str) -> None:
    error = refusal(cut_in_half(jpeg(kind)).removesuffix(END))
    assert type(error) is DataError
    assert "cannot be decoded" in str(error)


def test_a_restart_in_the_wrong_place_is_damage() -> None:
    encoded = jpeg("restarts").replace(b"\xff\xd2", b"\xff\xd5", 1)
    assert "found marker 0xd5 instead of RST2" in str(refusal(encoded))


def note(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(content) + 2).to_bytes(2, "big") + content


ODD: dict[str, Callable[[bytes], bytes]] = {
    "bytes before the end": lambda raw: raw.removesuffix(END) + b"\x12" * 40 + END,
    "bytes behind the end": lambda raw: raw + bytes(100),
    "bytes before a table": lambda raw: raw.replace(b"\xff\xdb", b"camera\xff\x00\xff\xff\xdb", 1),
    "another JFIF": lambda raw: raw.replace(b"JFIF\0\x01", b"JFIF\0\x07", 1),
    "unknown colours": lambda raw: raw[:2] + note(0xEE, b"Adobe\0\x64\0\0\0\0\x09") + raw[2:],
    "a thumbnail": lambda raw: raw[:2] + note(0xE1, cut_in_half(jpeg("grey"))) + raw[2:],
}


@pytest.mark.parametrize("kind", ["sequential", "progressive", "restarts"])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_no_damage_and_hides_none(kind: str, odd: str) -> None:
    encoded = ODD[odd](jpeg(kind))
    assert encoded != jpeg(kind)
    assert refusal(encoded) is None
    damaged = cut_in_half(jpeg(kind))
    if odd == "bytes before the end":  # where the data end too early they are data
        return
    assert isinstance(refusal(ODD[odd](damaged)), DamagedImageError)


def test_no_photograph_is_refused(bccd: Path) -> None:
    photographs = sorted((bccd / "JPEGImages").iterdir())
    assert len(photographs) == 364
    for path in photographs:
        open_image(path.read_bytes(), PLENTY).check()


def test_pixels_are_not_lost_with_the_end_of_a_file_alone(bccd: Path) -> None:
    """Pillow refuses some and accepts others, by how it is fed."""
    refused = []
    for path in sorted((bccd / "JPEGImages").iterdir())[:30]:
        encoded = path.read_bytes()
        assert encoded.endswith(END)
        refused.append(refusal(encoded.removesuffix(END)))
    assert None in refused
    assert not any(isinstance(error, DamagedImageError) for error in refused)


def test_what_the_decoder_calls_damage_after_a_bit_has_flipped_is_found(bccd: Path) -> None:
    photographs = sorted((bccd / "JPEGImages").iterdir())
    random = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        raw = bytearray(photographs[random.integers(len(photographs))].read_bytes())
        raw[random.integers(raw.index(b"\xff\xda"), len(raw))] ^= 1 << random.integers(8)
        told = strictly(bytes(raw))
        error = None
        try:
            open_image(bytes(raw), PLENTY).check()
        except DataError as caught:
            error = caught
        assert (error is not None) == (told != "" and "before marker 0xd9" not in told), told
        found += error is not None
    assert found > 40


def strictly(encoded: bytes) -> str:
    try:
        simplejpeg.decode_jpeg(encoded, strict=True)
    except ValueError as error:
        return str(error)
    return ""
