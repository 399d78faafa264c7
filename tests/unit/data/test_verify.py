import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from xxhash import xxh3_128_hexdigest

from hvdyolo.data.format import COLUMNS, DATASETS
from hvdyolo.data.manifest import read_manifest, write_manifest
from hvdyolo.data.verify import find_problems, verify_packed
from hvdyolo.data.writer import ColumnsRecord
from hvdyolo.utils.errors import DataError, MismatchError, UsageError

Build = Callable[..., Any]
Damage = Callable[[Path], Any]

SHARD, NEIGHBOUR = "train-00001-of-00003.h5", "train-00002-of-00003.h5"


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
    assert [problem.file for problem in problems] == [
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


def flip(dataset: str, place: int) -> Damage:
    """In a dataset of the shard, counted from its end if negative."""

    def damage_dataset(path: Path) -> None:
        with h5py.File(path, "r") as file:
            start, size = file[dataset].id.get_offset(), file[dataset].nbytes
        damage(path, start + place % size)

    return damage_dataset


def cut(path: Path, bytes_left_out: int) -> None:
    os.truncate(path, path.stat().st_size - bytes_left_out)


def append(path: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(b"\0")


def clear(path: Path) -> None:
    """Zeros in place of the images, as after a crash of some file systems."""
    with h5py.File(path, "r+") as file:
        file["data"][...] = 0


DAMAGES: dict[str, Damage] = {
    "superblock": lambda path: damage(path, 20),
    "padding before the images": lambda path: damage(path, (1 << 20) - 1),
    "first byte of the images": flip("data", 0),
    "last byte of the images": flip("data", -1),
    **{f"/{name}": flip(name, -1) for name in DATASETS if name != "data"},
    "cut by a byte": lambda path: cut(path, 1),
    "cut within the images": lambda path: cut(path, path.stat().st_size - (1 << 20) - 100),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "a byte too long": append,
    "images of zeros": clear,
    "missing": Path.unlink,
    "another shard of the dataset": lambda path: shutil.copy(path.with_name(NEIGHBOUR), path),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_damage_is_found_and_its_shard_named(packed: Build, kind: str) -> None:
    root = packed(shards=3, each=4).root
    DAMAGES[kind](root / SHARD)
    with pytest.raises(DataError, match=rf"damaged in 1 of 3 shards \({SHARD}\)"):
        verify_packed(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: replace(record, names=record.names + 1),
        lambda record: replace(record, digest="0" * 32),
        lambda record: replace(record, index=record.labels),
    ],
)
def test_a_manifest_that_has_the_columns_elsewhere_is_found(
    packed: Build, change: Callable[[ColumnsRecord], ColumnsRecord]
) -> None:
    """As a bug in packing would leave it: HDF5 finds everything, and other readers do not."""
    root = packed(shards=3, each=4).root
    manifest = read_manifest(root)
    info = manifest.splits["train"]
    first, second, third = info.shards
    shards = (first, replace(second, columns=change(second.columns)), third)
    write_manifest(replace(manifest, splits={"train": replace(info, shards=shards)}), root)
    with pytest.raises(DataError, match=rf"damaged in 1 of 3 shards \({second.file}\): .* is damaged"):
        verify_packed(root)


def test_columns_of_another_content_are_found(packed: Build) -> None:
    """The digest fits what lies there, but HDF5 finds others."""
    root = packed(shards=3, each=4).root
    manifest = read_manifest(root)
    info = manifest.splits["train"]
    first, second, third = info.shards
    moved = replace(second.columns, names=second.columns.names + 1)
    raw = (root / second.file).read_bytes()
    sizes = second.column_sizes()
    pieces = (raw[getattr(moved, name) :][: sizes[name]] for name in COLUMNS)
    forged = replace(second, columns=replace(moved, digest=xxh3_128_hexdigest(b"".join(pieces))))
    write_manifest(replace(manifest, splits={"train": replace(info, shards=(first, forged, third))}), root)
    with pytest.raises(DataError, match="has its columns elsewhere than the manifest says"):
        verify_packed(root)


@pytest.mark.parametrize("cut_bytes", [0, 5])
def test_a_damaged_manifest_is_found(packed: Build, cut_bytes: int) -> None:
    path = packed().root / "manifest.json"
    cut(path, cut_bytes) if cut_bytes else damage(path, 100)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        verify_packed(path.parent)


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
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(MismatchError):
        verify_packed(data.root)


def test_a_drawn_dataset_is_whole(synthetic: Path) -> None:
    assert verify_packed(synthetic).samples == 72
