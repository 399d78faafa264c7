"""The first version of a file stands, whole, on any file system."""

import errno
import os
import threading
from pathlib import Path

import pytest

from hvdyolo.utils.create_once import create_once, remove_leftovers
from hvdyolo.utils.errors import StorageError


def refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_the_first_version_stands(tmp_path: Path) -> None:
    assert create_once(tmp_path / "file", "first")
    assert not create_once(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    wins: list[str] = []

    def write(content: str) -> None:
        together.wait()
        if create_once(tmp_path / "file", content):
            wins.append(content)

    threads = [threading.Thread(target=write, args=(str(number) * 9999,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "file").read_text()] == wins


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_without_hard_links_a_rename_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise refuse(number)

    monkeypatch.setattr(os, "link", no_links)
    assert create_once(tmp_path / "file", "first")
    assert not create_once(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("theirs", ["theirs", None])
def test_a_temporary_file_taken_for_a_leftover_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str | None
) -> None:
    link = os.link

    def tidied(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        source.unlink()
        if theirs is not None:
            target.write_text(theirs)
        raise refuse(errno.ENOENT)

    monkeypatch.setattr(os, "link", tidied)
    assert create_once(tmp_path / "file", "mine") == (theirs is None)
    assert (tmp_path / "file").read_text() == (theirs or "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_has_gone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def gone(source: Path, target: Path) -> None:
        source.unlink()
        target.parent.rmdir()
        raise refuse(errno.ENOENT)

    monkeypatch.setattr(os, "link", gone)
    with pytest.raises(StorageError, match="No such file"):
        create_once(tmp_path / "out/file", "mine")


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise refuse(errno.ENOSPC)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        create_once(tmp_path / "file", "content")
    assert list(tmp_path.iterdir()) == []


def test_what_the_killed_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".file.host.1.2.tmp").write_text("half")
    (tmp_path / "file").write_text("whole")
    (tmp_path / ".hidden").write_text("of somebody else")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".hidden"}
