"""The bytes of a sample's polygons: as they are specified, and never another's or damaged ones."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from hvdyolo.data.outlines import Outlines, decode_outlines, encode_outlines, polygon_count

TRIANGLE = np.array([[0, 0], [0.5, 0], [0.25, 1]], dtype=np.float32)
SQUARE = np.array([[-0.25, 0], [1.5, 0], [1.5, 1], [0, 1]], dtype=np.float32)


def test_they_are_what_the_specification_says() -> None:
    entry = encode_outlines([[], [SQUARE, TRIANGLE], [], [TRIANGLE]], sample_id=77)
    heads = [(1, 4), (1, 3), (3, 3)]
    content = struct.pack("<I", 3) + b"".join(struct.pack("<2I", *head) for head in heads)
    content += struct.pack("<8f", -0.25, 0, 1.5, 0, 1.5, 1, 0, 1)
    content += 2 * struct.pack("<6f", 0, 0, 0.5, 0, 0.25, 1)
    assert entry == struct.pack("<Q", xxh3_64_intdigest(content, seed=77)) + content
    assert polygon_count(entry) == 3


coordinates = st.floats(-0.5, 1.5, width=32)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=6)


@given(st.lists(st.lists(polygons, max_size=3), max_size=4), st.integers(0, (1 << 64) - 1))
def test_what_is_written_is_read(drawn: list[list[list[tuple[float, float]]]], sample_id: int) -> None:
    outlines: Outlines = [[np.array(polygon, dtype=np.float32) for polygon in some] for some in drawn]
    read = decode_outlines(encode_outlines(outlines, sample_id), sample_id, len(outlines))
    assert [[polygon.tolist() for polygon in some] for some in read] == [
        [polygon.tolist() for polygon in some] for some in outlines
    ]


def test_every_flipped_bit_every_cut_and_every_other_sample_is_noticed() -> None:
    good = encode_outlines([[TRIANGLE], []], sample_id=5)
    assert len(decode_outlines(good, 5, 2)) == 2
    for place in range(8 * len(good)):
        raw = bytearray(good)
        raw[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError):
            decode_outlines(bytes(raw), 5, 2)
    for length in range(len(good)):
        with pytest.raises(ValueError):
            decode_outlines(good[:length], 5, 2)
    with pytest.raises(ValueError):
        decode_outlines(good, 6, 2)


@pytest.mark.parametrize(
    ("heads", "numbers"),
    [
        ([(2, 3)], 6),  # no such label
        ([(0, 2)], 4),  # no polygon
        ([(0, 4)], 6),  # more points than there are
        ([(0, 3)], 8),  # fewer
        ([(0, 3)], 7),  # half a point
        ([(0, 1 << 31), (1, (1 << 31) + 3)], 6),  # only when numbers overflow
    ],
)
def test_what_cannot_be_is_refused_though_its_checksum_is_right(
    heads: list[tuple[int, int]], numbers: int
) -> None:
    content = struct.pack("<I", len(heads)) + b"".join(struct.pack("<2I", *head) for head in heads)
    content += bytes(4 * numbers)
    with pytest.raises(ValueError):
        decode_outlines(struct.pack("<Q", xxh3_64_intdigest(content, seed=1)) + content, 1, 2)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError):
        decode_outlines(encode_outlines([[TRIANGLE * np.float32("nan")]], 1), 1, 1)
