"""The packed format: names, types and limits. docs/shard_format.md is the specification."""

import json
from collections.abc import Sequence

import numpy as np

SCHEMA = "hvdyolo.packed"
VERSION = 2
MANIFEST_NAME = "manifest.json"

DATA_ALIGNMENT = 1 << 20
"""Start of ``/data`` in its file is a multiple of this, bytes: whole stripes of a parallel file system."""

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("checksum", "<u8"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("source_width", "<u2"),
        ("source_height", "<u2"),
        ("sample_id", "<u8"),
        ("codec", "u1"),
    ]
)
"""A row of ``/index``: a sample's place in ``/data``, the xxh3-64 of its bytes, and its sizes in pixels."""

MOST_PIXELS_A_SIDE = np.iinfo(np.uint16).max

CODECS = {"JPEG": 0, "PNG": 1, "WEBP": 2, "BMP": 3, "TIFF": 4, "GIF": 5, "MPO": 6}
"""Pillow's format names and their numbers in ``codec``; 255 is any other."""
OTHER_CODEC = 255

CROWD, DIFFICULT, TRUNCATED = 1, 2, 4
"""Bits of ``/label_flags``."""

DATASETS = {
    "data": np.dtype("u1"),
    "index": INDEX_DTYPE,
    "labels": np.dtype("<f4"),
    "label_flags": np.dtype("u1"),
    "label_ptr": np.dtype("<u8"),
    "names": np.dtype("u1"),
    "name_ptr": np.dtype("<u8"),
}
"""Every dataset of a shard and its type; there is nothing else in it."""

COLUMNS = ("label_ptr", "name_ptr", "labels", "index", "label_flags", "names")
"""All datasets but the images, in the order in which the manifest digests them."""

TEXT_ATTRIBUTES = ("schema", "split", "names", "settings")
"""Attributes of a shard that are text: of fixed length, UTF-8, ``names`` and ``settings`` being JSON."""
NUMBER_ATTRIBUTES = ("version", "shard", "samples", "complete")
"""Attributes of a shard that are 64-bit integers."""
MOST_ATTRIBUTE_BYTES = 1 << 15
"""HDF5 keeps those of nearly 64 KiB elsewhere in the file, and nothing here needs them."""


def encode_names(names: Sequence[str]) -> bytes:
    """Class names as a shard's attribute holds them."""
    return json.dumps(list(names)).encode()


def polygons_name(split: str) -> str:
    """File name of a split's polygons (:mod:`hvdyolo.data.polygon_file`)."""
    return f"{split}.polygons"


def shard_name(split: str, number: int, count: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:05d}-of-{count:05d}.h5"
