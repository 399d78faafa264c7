import numpy as np

from hvdyolo.data.format import DATASETS, INDEX_DTYPE, shard_name


def test_an_index_row_is_37_bytes_without_gaps() -> None:
    """What docs/shard_format.md tells writers of other readers."""
    places = {name: (offset, dtype.str) for name, (dtype, offset, *_) in INDEX_DTYPE.fields.items()}
    assert places == {
        "offset": (0, "<u8"),
        "length": (8, "<u4"),
        "checksum": (12, "<u8"),
        "width": (20, "<u2"),
        "height": (22, "<u2"),
        "source_width": (24, "<u2"),
        "source_height": (26, "<u2"),
        "sample_id": (28, "<u8"),
        "codec": (36, "|u1"),
    }
    assert INDEX_DTYPE.itemsize == 37


def test_every_type_has_a_fixed_byte_order() -> None:
    for dtype in DATASETS.values():
        assert dtype == dtype.newbyteorder("<")
        assert not dtype.hasobject
    assert np.dtype("<f4") == DATASETS["labels"]


def test_shard_names_sort_in_their_order() -> None:
    names = [shard_name("val", number, 12) for number in range(12)]
    assert names[7] == "val-00007-of-00012.h5"
    assert names == sorted(names)
