"""A part is whole, proves its content, and the first one stands."""

import errno
import json
import os
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.engine.detection_plan import Plan
from hvdyolo.engine.parts import Failed, Found, Parts, PartTotals, Record
from hvdyolo.utils.errors import DataError, StorageError

PLAN = Plan(
    images=5,
    chunk=2,
    image_list="images.jsonl",
    class_names=("cat", "dog"),
    source="/photos",
    fingerprint={"weights": "abc"},
)


def found(number: int, boxes: int = 1) -> Found:
    return Found(
        image=f"{number}.jpg",
        id=number,
        width=640,
        height=480,
        boxes_xyxy=[[0.5, 1.0, 20.25, 30.0]] * boxes,
        scores=[0.75] * boxes,
        labels=[1] * boxes,
        capped=False,
    )


def failed(number: int) -> Failed:
    return Failed(f"{number}.jpg", number, "missing", "no such file")


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    (tmp_path / "parts").mkdir()
    return Parts(tmp_path, PLAN)


def test_plan_cuts_the_images_into_chunks() -> None:
    assert PLAN.chunks == 3
    assert [list(PLAN.ids(chunk)) for chunk in range(3)] == [[0, 1], [2, 3], [4]]


def test_a_part_reads_as_the_format_says(parts: Parts) -> None:
    assert parts.commit(0, [found(0, 2), failed(1)])
    lines = parts.path(0).read_bytes().splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == [
        {
            "image": "0.jpg",
            "id": 0,
            "width": 640,
            "height": 480,
            "boxes_xyxy": [[0.5, 1.0, 20.25, 30.0]] * 2,
            "scores": [0.75, 0.75],
            "labels": [1, 1],
            "capped": False,
        },
        {"image": "1.jpg", "id": 1, "error": "missing", "detail": "no such file"},
        {
            "end": True,
            "images": 2,
            "boxes": 2,
            "errors": 1,
            "fingerprint": PLAN.digest,
            "checksum": xxhash.xxh3_64_hexdigest(b"".join(lines[:2])),
        },
    ]


def test_what_is_committed_is_read_back(parts: Parts) -> None:
    records: list[Record] = [found(2, 0), failed(3)]
    parts.commit(1, records)
    assert list(parts.records(1)) == records
    assert parts.totals(1) == PartTotals(2, 0, 1, PLAN.digest, parts.totals(1).checksum)
    assert parts.finished() == {1}


def test_the_first_commit_stands(parts: Parts) -> None:
    assert parts.commit(2, [found(4)])
    first = parts.path(2).read_bytes()
    assert not parts.commit(2, [failed(4)])
    assert parts.path(2).read_bytes() == first
    assert [path.name for path in parts.directory.iterdir()] == ["part-00000002.jsonl"]


def test_a_failed_commit_leaves_nothing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        parts.commit(2, [found(4)])
    assert list(parts.directory.iterdir()) == []


def test_leftovers_are_no_parts(parts: Parts) -> None:
    leftover = parts.directory / ".part-00000001.jsonl.host.1.2.tmp"
    leftover.write_text("half")
    assert parts.finished() == set()
    parts.commit(0, [found(0), found(1)])
    parts.remove_leftovers()
    assert [path.name for path in parts.directory.iterdir()] == ["part-00000000.jsonl"]


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    out = tmp_path_factory.mktemp("out")
    (out / "parts").mkdir()
    parts = Parts(out, PLAN)
    parts.commit(0, [found(0, 3), failed(1)])
    raw = bytearray(parts.path(0).read_bytes())
    raw[position % len(raw)] ^= 1 << bit
    parts.path(0).write_bytes(raw)
    with pytest.raises(DataError, match="part-00000000"):
        list(parts.records(0))


@pytest.mark.parametrize("lines", [[], [0], [1, 2], [0, 2], [0, 1], [1, 0, 2], [0, 1, 1, 2], [0, 1, 2, 2]])
def test_lost_doubled_or_swapped_lines_are_noticed(parts: Parts, lines: list[int]) -> None:
    parts.commit(0, [found(0), found(1)])
    whole = parts.path(0).read_text().splitlines(keepends=True)
    parts.path(0).write_text("".join(whole[line] for line in lines))
    with pytest.raises(DataError, match="delete it"):
        list(parts.records(0))


def test_a_part_of_another_chunk_or_plan_is_noticed(parts: Parts, tmp_path: Path) -> None:
    parts.commit(1, [found(2), found(3)])
    parts.path(1).rename(parts.path(0))
    with pytest.raises(DataError, match="image 2 stands where 0 belongs"):
        list(parts.records(0))
    other = Plan(5, 2, "images.jsonl", ("cat", "dog"), "/photos", {"weights": "abd"})
    with pytest.raises(DataError, match=PLAN.digest):
        Parts(tmp_path, other).totals(0)
