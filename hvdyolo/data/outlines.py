"""Outlines of objects, and the bytes that hold those of a sample."""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Polygon = NDArray[np.float32]
"""(n, 2): x, y as fractions of the image; they may lie outside it."""
Outline = Sequence[Polygon]
"""All that is inside of any of some polygons; of an object that has a box alone, none."""
Outlines = Sequence[Outline]
"""Of each label of a sample."""

LEAST_POINTS = 3
LEAST_ENTRY = 12
"""Bytes of an entry without polygons."""
MOST_ENTRY = 64 << 20
"""Bytes of an entry: a damaged pointer must not ask for all memory there is."""

_CHECKSUM, _COUNT = struct.Struct("<Q"), struct.Struct("<I")


def encode_outlines(outlines: Outlines, sample_id: int) -> bytes:
    """The entry of a sample (docs/shard_format.md), which cannot be taken for another's."""
    polygons = [(label, polygon) for label, outline in enumerate(outlines) for polygon in outline]
    heads = np.array([(label, len(polygon)) for label, polygon in polygons], dtype="<u4")
    points = b"".join(polygon.astype("<f4").tobytes() for _, polygon in polygons)
    content = _COUNT.pack(len(polygons)) + heads.tobytes() + points
    return _CHECKSUM.pack(xxh3_64_intdigest(content, seed=sample_id)) + content


def decode_outlines(entry: bytes, sample_id: int, labels: int) -> Outlines:
    """The outlines of a sample's labels; arrays are read-only.

    Raises:
        ValueError: the entry is damaged, or another sample's.
    """
    if len(entry) < LEAST_ENTRY or _CHECKSUM.unpack_from(entry)[0] != xxh3_64_intdigest(
        entry[_CHECKSUM.size :], seed=sample_id
    ):
        raise ValueError("checksum")
    count = polygon_count(entry)
    heads = np.frombuffer(entry, "<u4", 2 * count, LEAST_ENTRY).reshape(-1, 2)
    points = np.frombuffer(entry, "<f4", offset=LEAST_ENTRY + heads.nbytes).reshape(-1, 2)
    if heads[:, 1].sum(dtype=np.uint64) != len(points) or not np.isfinite(points).all():
        raise ValueError("points")
    outlines: list[list[Polygon]] = [[] for _ in range(labels)]
    first = 0
    for label, length in heads.tolist():
        if label >= labels or length < LEAST_POINTS:
            raise ValueError("polygon")
        outlines[label].append(points[first : first + length])
        first += length
    return outlines


def polygon_count(entry: bytes) -> int:
    """Number of polygons in an entry."""
    (count,) = _COUNT.unpack_from(entry, _CHECKSUM.size)
    return int(count)
