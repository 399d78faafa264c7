"""Every image of a source once, by a name and a number that never change."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.image_sources import BadImageError, StoredImage, open_source
from hvdyolo.utils.errors import StorageError, UsageError


def write(path: Path, content: bytes = b"image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_directory_is_read_to_its_depths_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/deep/er/x.tiff", "B.jpeg", "a.webp", "c.bmp", "ü\n.tif"):
        write(tmp_path / name, name.encode())
    for name in ("notes.txt", ".hidden.jpg", ".cache/x.jpg", "jpg", "a/labels/x.json"):
        write(tmp_path / name)
    source = open_source(tmp_path)
    names = source.list_names()
    assert names == [
        "B.jpeg", "a.webp", "a/deep/er/x.tiff", "a/z.png", "b.JPG", "c.bmp", "ü\n.tif",
    ]  # fmt: skip
    for index, name in enumerate(names):
        assert source.read(index, name) == StoredImage(name.encode(), None)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "data/x.jpg")
    write(tmp_path / "elsewhere/y.jpg")
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    (tmp_path / "data/itself").symlink_to(".")
    assert open_source(tmp_path / "data").list_names() == ["more/y.jpg", "x.jpg"]


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    try:
        with open(raw, "wb") as stream:
            stream.write(b"odd")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = open_source(tmp_path)
    (name,) = source.list_names()
    assert source.read(0, name).encoded == b"odd"


def test_a_list_is_relative_to_its_own_directory(tmp_path: Path) -> None:
    write(tmp_path / "lists/images/1.jpg", b"one")
    write(tmp_path / "far/2.jpg", b"two")
    (tmp_path / "lists/val.txt").write_text(f"images/1.jpg\r\n\n{tmp_path}/far/2.jpg\nimages/none.jpg")
    source = open_source(tmp_path / "lists/val.txt")
    names = source.list_names()
    assert names == ["images/1.jpg", f"{tmp_path}/far/2.jpg", "images/none.jpg"]
    assert [source.read(i, names[i]).encoded for i in range(2)] == [b"one", b"two"]
    with pytest.raises(BadImageError) as failure:
        source.read(2, names[2])
    assert failure.value.code == "missing"


def test_an_image_is_no_list(tmp_path: Path) -> None:
    write(tmp_path / "x.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(UsageError, match="not a list"):
        open_source(tmp_path / "x.jpg").list_names()


def test_failures_of_an_image_are_told_from_those_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.jpg").mkdir()
    source = open_source(tmp_path)
    assert source.list_names() == []
    for name, code in (
        ("gone.jpg", "missing"),
        ("folder.jpg", "unreadable"),
        ("x" * 300 + ".jpg", "unreadable"),
    ):
        with pytest.raises(BadImageError) as failure:
            source.read(0, name)
        assert failure.value.code == code
        assert str(tmp_path) not in failure.value.detail  # the same words wherever the source lies

    def broken_disk(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken_disk)
    with pytest.raises(StorageError, match=r"x\.jpg: Input/output error"):
        source.read(0, "x.jpg")


def test_a_directory_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "closed/x.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="closed: Permission denied"):
        open_source(tmp_path).list_names()


def test_nothing_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_source(tmp_path / "none")


def test_packed_data_is_read_split_after_split(synthetic: Path) -> None:
    splits = {name: PackedSplit(synthetic, name) for name in ("train", "val")}
    source = open_source(synthetic)
    names = source.list_names()
    expected = [
        (f"{name}/{packed.name(index)}", packed.read(index), packed.source_size(index))
        for name, packed in splits.items()
        for index in range(len(packed))
    ]
    assert names == [name for name, _, _ in expected]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(source.read, range(len(names)), names))
    assert read == [StoredImage(encoded, size) for _, encoded, size in expected]


def test_one_split_of_packed_data(synthetic: Path) -> None:
    source = open_source(synthetic / "val")
    val = PackedSplit(synthetic, "val")
    assert source.list_names() == [f"val/{val.name(index)}" for index in range(len(val))]
    assert source.read(3, "").encoded == val.read(3)
    assert source.identity == open_source(synthetic).identity == f"packed {val.dataset_id}"
    with pytest.raises(UsageError, match="no split 'test'; it has"):
        open_source(synthetic / "test")
