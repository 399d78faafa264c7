from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdyolo.data.verify import find_problems, verify_packed
from hvdyolo.utils.errors import DataError, MismatchError, UsageError

Build = Callable[..., Any]


def damage(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 16
    path.write_bytes(raw)


def test_what_is_whole_is_counted(packed: Build) -> None:
    data = packed(shards=3, each=4)
    verified = verify_packed(data.root)
    assert (verified.splits, verified.samples) == (1, 12)
    assert verified.bytes == sum(len(sample.encoded) for sample in data.samples)


def test_everything_that_is_damaged_is_found_in_one_go(packed: Build) -> None:
    data = packed(shards=4, each=4)
    files = [data.root / record.file for record in data.records]
    offset = data.records[0].data_offset
    damage(files[0], offset)  # the first byte of the first sample
    damage(files[0], offset + data.records[0].data_bytes - 1)  # the last of the last
    damage(files[1], 20)
    files[3].unlink()
    problems = list(find_problems(data.root))
    assert [problem.shard for problem in problems] == [
        files[0].name,
        files[0].name,
        files[1].name,
        files[3].name,
    ]
    assert "sample 0 (folder/ü0.png) is damaged" in problems[0].text
    assert "sample 3 (folder/ü3.png) is damaged" in problems[1].text
    with pytest.raises(
        DataError, match=rf"damaged in 3 of 4 shards \({files[0].name}, {files[1].name}, "
    ) as caught:
        verify_packed(data.root)
    assert "\n" not in str(caught.value)


def test_long_lists_are_cut(packed: Build) -> None:
    data = packed(each=9)
    path = data.root / data.records[0].file
    place = data.records[0].data_offset
    for sample in data.samples:
        damage(path, place + 5)
        place += len(sample.encoded)
    with pytest.raises(DataError, match="and 4 more"):
        verify_packed(data.root)


def test_what_is_no_packed_data_is_said_to_be_none(tmp_path: Path, packed: Build) -> None:
    with pytest.raises(UsageError):
        verify_packed(tmp_path)
    data = packed()
    manifest = data.root / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(MismatchError):
        verify_packed(data.root)


def test_a_drawn_dataset_is_whole(synthetic: Path) -> None:
    assert verify_packed(synthetic).samples == 72
