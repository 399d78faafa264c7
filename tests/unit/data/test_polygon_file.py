"""The file of a split's polygons: read sample by sample, and never used where it is damaged."""

import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_128_hexdigest

from hvdyolo.data.identity import ContentDigest
from hvdyolo.data.manifest import Manifest, read_manifest, write_manifest
from hvdyolo.data.outlines import Outlines, encode_outlines
from hvdyolo.data.polygon_file import PolygonsRecord, join_polygons, write_polygons
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.data.reshard import reshard
from hvdyolo.data.shard import read_shard
from hvdyolo.data.staging import stage_shards
from hvdyolo.data.verify import find_problems, verify_packed
from hvdyolo.data.writer import Sample
from hvdyolo.utils.errors import DataError, StorageError, UsageError

Build = Callable[..., Any]
NAME = "train.polygons"


def as_lists(outlines: Outlines) -> list[list[list[list[float]]]]:
    return [[polygon.tolist() for polygon in outline] for outline in outlines]


def read(root: Path, **options: Any) -> PackedSplit:
    return PackedSplit(root, "train", outlines=True, **options)


def change(root: Path, **values: Any) -> None:
    """What the manifest says of the polygons."""
    manifest = read_manifest(root)
    info = manifest.splits["train"]
    assert info.polygons is not None
    info = replace(info, polygons=replace(info.polygons, **values))
    write_manifest(replace(manifest, splits={"train": info}), root)


def test_it_is_what_the_specification_says(packed: Build) -> None:
    data = packed(shards=2, each=5, polygons=True)
    raw = (data.root / NAME).read_bytes()
    count = sum(len(outline) for outlines in data.outlines for outline in outlines)
    record = read_manifest(data.root).splits["train"].polygons
    assert record == PolygonsRecord(NAME, count, len(raw), xxh3_128_hexdigest(raw))
    assert struct.unpack_from("<16sQQ", raw) == (b"hvdyolo.polygons", 1, 10)
    pointers = struct.unpack_from("<11Q", raw, 32)
    assert (pointers[0], pointers[-1]) == (32 + 8 * 11, len(raw))
    for place, (sample, outlines) in enumerate(zip(data.samples, data.outlines, strict=True)):
        entry = encode_outlines(outlines, sample.sample_id)
        assert raw[pointers[place] : pointers[place + 1]] == entry


def test_a_reader_is_told_the_polygons_of_each_label(packed: Build) -> None:
    data = packed(shards=2, each=5, polygons=True)
    split = read(data.root)
    for index, outlines in enumerate(data.outlines):
        assert len(split.outlines(index)) == len(split.labels(index))
        assert as_lists(split.outlines(index)) == as_lists(outlines)


def test_parts_of_any_sizes_make_the_same_file(tmp_path: Path) -> None:
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    entries = [encode_outlines([[square] * (number % 3)], number) for number in range(7)]
    whole = write_polygons(tmp_path / NAME, tmp_path, entries)
    good = (tmp_path / NAME).read_bytes()
    for borders in ([0, 7], [0, 3, 7], [0, 0, 1, 7, 7], list(range(8))):
        parts = [
            write_polygons(tmp_path / f"{number}.part", tmp_path, entries[first:last])
            for number, (first, last) in enumerate(pairwise(borders))
        ]
        assert join_polygons(tmp_path / NAME, tmp_path, parts) == whole
        assert (tmp_path / NAME).read_bytes() == good
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "0.part").write_bytes(bytes((tmp_path / "0.part").stat().st_size))
    with pytest.raises(DataError, match=r"0\.part is damaged"):
        join_polygons(tmp_path / NAME, tmp_path, parts)


def test_no_flipped_bit_is_used(packed: Build) -> None:
    """Of the header it is seen at once; of all else when a sample is read that it concerns."""
    data = packed(shards=1, each=6, polygons=True)
    path = data.root / NAME
    good = path.read_bytes()
    pointers = struct.unpack_from("<7Q", good, 32)
    wanted = [as_lists(outlines) for outlines in data.outlines]
    for bit in range(0, 8 * len(good), 7):  # in the end, every bit of a byte
        place = bit // 8
        raw = bytearray(good)
        raw[place] ^= 1 << bit % 8
        path.write_bytes(raw)
        if place < 32:
            with pytest.raises(DataError, match="is damaged"):
                read(data.root)
            continue
        split = read(data.root)
        if place < pointers[0]:  # a pointer is one's end and another's beginning
            hit = {(place - 32) // 8 - 1, (place - 32) // 8} & set(range(6))
        else:
            hit = {next(number for number in range(6) if place < pointers[number + 1])}
        for index in range(6):
            if index in hit:
                with pytest.raises(DamagedSampleError, match=rf"{NAME}: sample {index} \(folder/ü{index}"):
                    split.outlines(index)
            else:
                assert as_lists(split.outlines(index)) == wanted[index]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes and should have"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), r"has \d+ bytes and should have"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_file_that_is_not_there_whole_is_told_at_the_start(
    packed: Build, damage: Callable[[Path], Any], says: str
) -> None:
    root = packed(polygons=True).root
    damage(root / NAME)
    with pytest.raises(DataError, match=rf"train\.polygons {says}"):
        read(root)
    PackedSplit(root, "train")  # who does not ask for them does not need them


def test_a_file_that_cannot_be_read_is_exit_74(packed: Build) -> None:
    root = packed(polygons=True).root
    (root / NAME).unlink()
    (root / NAME).mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*train\.polygons"):
        read(root)


def test_a_file_that_goes_while_it_is_used_is_told(packed: Build) -> None:
    root = packed(polygons=True).root
    split = read(root)
    (root / NAME).unlink()
    with pytest.raises(DataError, match="is missing"):
        split.outlines(0)


def test_a_file_of_another_split_is_refused(packed: Build, tmp_path: Path) -> None:
    data = packed(each=5, polygons=True)
    entries = [encode_outlines(outlines, 0) for outlines in data.outlines[:4]]
    other = write_polygons(data.root / NAME, tmp_path, entries)
    change(data.root, bytes=other.bytes, digest=other.digest)
    with pytest.raises(DataError, match="is damaged"):
        read(data.root)


def test_data_without_polygons_are_refused_where_they_are_asked_for(packed: Build) -> None:
    root = packed().root
    with pytest.raises(UsageError, match=r"'train' of .* was packed without --polygons: pack "):
        read(root)


def test_data_of_boxes_alone_are_refused_where_polygons_are_asked_for(packed: Build) -> None:
    root = packed(polygons=True).root
    change(root, polygons=0)
    with pytest.raises(UsageError, match=r"'train' of .* has boxes alone"):
        read(root)


@pytest.mark.parametrize(
    "values",
    [
        {"file": "../train.polygons"},
        {"file": "val.polygons"},
        {"bytes": -1},
        {"bytes": 1.5},
        {"polygons": "1"},
        {"polygons": None},
        {"digest": "x"},
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(packed: Build, values: dict[str, Any]) -> None:
    root = packed(polygons=True).root
    change(root, **values)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(root)


def identity(data: Any, manifest: Manifest, polygons: dict[str, str] | None) -> str:
    content = ContentDigest(manifest.names)
    for record in data.records:
        content.add("train", read_shard(data.root, record, len(manifest.names)))
    return content.dataset_id(polygons)


def test_polygons_are_part_of_the_identity(packed: Build) -> None:
    data = packed(polygons=True)
    manifest = read_manifest(data.root)
    record = manifest.splits["train"].polygons
    assert record is not None
    assert manifest.dataset_id == identity(data, manifest, {"train": record.digest})
    others = [None, {"train": "0" * 32}]
    assert manifest.dataset_id not in [identity(data, manifest, other) for other in others]


def test_other_shards_have_the_same_polygons(packed: Build, tmp_path: Path) -> None:
    data = packed(shards=2, each=6, polygons=True)
    manifest = reshard(data.root, tmp_path / "new", 300)
    before = read_manifest(data.root)
    assert len(manifest.splits["train"].shards) > 2
    assert (manifest.dataset_id, manifest.splits["train"].polygons) == (
        before.dataset_id,
        before.splits["train"].polygons,
    )
    split = read(tmp_path / "new")
    assert [as_lists(split.outlines(index)) for index in range(12)] == list(map(as_lists, data.outlines))
    verify_packed(tmp_path / "new")


def test_damaged_polygons_are_not_resharded(packed: Build, tmp_path: Path) -> None:
    root = packed(polygons=True).root
    (root / NAME).write_bytes(bytes((root / NAME).stat().st_size))
    with pytest.raises(DataError, match=r"train\.polygons is damaged"):
        reshard(root, tmp_path / "new", 1 << 20)
    assert not (tmp_path / "new" / "manifest.json").exists()
    assert not (tmp_path / "new" / NAME).exists()


def stage(root: Path, target: Path, outlined: tuple[str, ...] = ("train",)) -> Path:
    return stage_shards(root, ("train",), target, lambda: None, outlined)


def test_polygons_that_are_asked_for_are_staged_with_the_shards(packed: Build, tmp_path: Path) -> None:
    data = packed(shards=2, each=3, polygons=True)
    assert not (stage(data.root, tmp_path / "node", ()) / NAME).exists()
    where = stage(data.root, tmp_path / "node")
    assert (where / NAME).read_bytes() == (data.root / NAME).read_bytes()
    (data.root / NAME).unlink()
    assert as_lists(read(data.root, shards=where).outlines(5)) == as_lists(data.outlines[5])
    assert stage(data.root, tmp_path / "node") == where  # the next job copies nothing


def test_damaged_polygons_are_not_staged(packed: Build, tmp_path: Path) -> None:
    root = packed(polygons=True).root
    (root / NAME).write_bytes(bytes((root / NAME).stat().st_size))
    with pytest.raises(DataError, match=r"train\.polygons is damaged"):
        stage(root, tmp_path / "node")
    assert not list((tmp_path / "node").rglob("*.polygons*"))


def test_missing_polygons_are_told_before_anything_is_staged(packed: Build, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without --polygons"):
        stage(packed().root, tmp_path / "node")
    assert not (tmp_path / "node").exists()


def test_verify_reads_all_of_them(packed: Build) -> None:
    root = packed(shards=2, polygons=True).root
    verify_packed(root)
    raw = bytearray((root / NAME).read_bytes())
    raw[-1] ^= 1
    (root / NAME).write_bytes(raw)
    assert [problem.file for problem in find_problems(root)] == [NAME]
    with pytest.raises(DataError, match=r"damaged in train\.polygons: .*train\.polygons is damaged"):
        verify_packed(root)


@pytest.mark.parametrize("what", ["order", "count", "number"])
def test_verify_finds_polygons_of_other_shards(packed: Build, what: str) -> None:
    """Their digest is the manifest's, but they are another dataset's."""
    data = packed(shards=2, each=4, polygons=True)
    samples: list[Sample] = data.samples[::-1] if what == "order" else data.samples
    entries = [
        encode_outlines(outlines, sample.sample_id)
        for sample, outlines in zip(samples, data.outlines, strict=True)
    ]
    if what == "count":
        entries.pop()
    forged = write_polygons(data.root / NAME, data.root, entries)
    counted = forged.polygons + (what == "number")
    change(data.root, bytes=forged.bytes, digest=forged.digest, polygons=counted)
    assert [problem.text for problem in find_problems(data.root)] == [
        f"{data.root / NAME} is not of these shards; pack the data again"
    ]
