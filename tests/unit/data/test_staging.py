"""Copies on a node, made once by processes that race, are killed, or find no room."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hvdyolo.data import staging as staging_module
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.reshard import reshard
from hvdyolo.data.staging import local_shards, stage_shards
from hvdyolo.utils.errors import DataError, StorageError

Build = Callable[..., Any]


def nothing() -> None:
    pass


def stage(root: Path, target: Path) -> Path:
    return stage_shards(root, ("train",), target, nothing)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(data: Any) -> dict[str, bytes]:
    return {record.file: (data.root / record.file).read_bytes() for record in data.records}


def test_shards_are_copied_and_read_there(packed: Build, tmp_path: Path) -> None:
    data = packed(shards=3, each=4)
    where = stage(data.root, tmp_path / "local")
    assert contents(where) == shards(data)
    for record in data.records:
        (data.root / record.file).unlink()
    split = PackedSplit(data.root, "train", shards=where)
    assert [split.read(index) for index in range(12)] == [sample.encoded for sample in data.samples]


def test_without_a_directory_shards_are_read_where_they_are(packed: Build, tmp_path: Path) -> None:
    root = packed().root
    assert local_shards(root, ("train",), None, nothing) == root
    assert local_shards(root, ("train",), str(tmp_path / "local"), nothing).parent == tmp_path / "local"


def test_the_next_job_finds_the_copies(packed: Build, tmp_path: Path) -> None:
    data = packed(shards=3, each=4)
    where = stage(data.root, tmp_path / "local")
    kept = shards(data)
    for record in data.records:
        (data.root / record.file).unlink()
    assert stage(data.root, tmp_path / "local") == where
    assert contents(where) == kept


def test_other_data_and_other_shards_of_the_same_data_have_other_places(
    packed: Build, tmp_path: Path
) -> None:
    """Resharded into as many, whose settings say otherwise, so that names and identity are equal."""
    data = packed(shards=1, each=10)
    resharded = reshard(data.root, tmp_path / "new", 1 << 40)
    assert resharded.dataset_id == read_manifest(data.root).dataset_id
    first, second = stage(data.root, tmp_path / "local"), stage(tmp_path / "new", tmp_path / "local")
    assert first != second
    assert contents(first) == shards(data)
    assert PackedSplit(tmp_path / "new", "train", shards=second).read(9) == data.samples[9].encoded


CHILD = """
import os, sys, time
from pathlib import Path
from hvdyolo.data import staging
copy = staging._copy
def told(root, record, *rest):
    print("copies", record.file, flush=True)
    copy(root, record, *rest)
    print("copied", record.file, flush=True)
staging._copy = told
frozen = len(sys.argv) > 3
def beat():
    if frozen:
        print("frozen", flush=True)
        time.sleep(100)
print("ready", flush=True)
sys.stdin.readline()
staging.stage_shards(Path(sys.argv[1]), ("train",), Path(sys.argv[2]), beat)
"""


@pytest.fixture
def child() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a process that is ready to stage when it is given a line."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_of_many_processes_one_copies_each_shard(
    packed: Build, tmp_path: Path, child: Callable[..., "subprocess.Popen[str]"]
) -> None:
    data = packed(shards=12, each=20)
    processes = [child(data.root, tmp_path / "local") for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs: list[str] = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        outputs += process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == 0
    copied = sorted(line.split()[1] for line in outputs if line.startswith("copied"))
    assert copied == sorted(record.file for record in data.records)
    assert len(outputs) == 2 * len(copied)
    (where,) = (tmp_path / "local").iterdir()
    assert contents(where) == shards(data)


def test_where_the_copier_is_killed_another_takes_over(
    packed: Build, tmp_path: Path, child: Callable[..., "subprocess.Popen[str]"]
) -> None:
    data = packed(shards=3, each=4)
    copier = child(data.root, tmp_path / "local", "frozen")
    assert copier.stdout is not None
    assert copier.stdin is not None
    copier.stdin.write("\n")
    copier.stdin.flush()
    while copier.stdout.readline() != "frozen\n":
        pass
    done: list[Path] = []
    waiting = threading.Thread(target=lambda: done.append(stage(data.root, tmp_path / "local")), daemon=True)
    waiting.start()
    waiting.join(1)
    (where,) = (tmp_path / "local").iterdir()
    present = contents(where)
    # The other two are there, and the frozen one is neither taken nor waited for in vain.
    assert waiting.is_alive()
    assert sorted(name for name in present if name.endswith(".h5")) == [
        record.file for record in data.records[1:]
    ]
    os.kill(copier.pid, signal.SIGKILL)
    waiting.join(30)
    assert done == [where]
    assert contents(where) == shards(data)


def test_what_does_not_fit_is_refused_before_anything_is_copied(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(shards=3, each=4)
    needed = sum(record.bytes for record in data.records)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(
        StorageError, match=rf"needs {needed:,} bytes and {needed - 1:,} bytes are free"
    ) as caught:
        stage(data.root, tmp_path / "local")
    assert "\n" not in str(caught.value)
    (where,) = (tmp_path / "local").iterdir()
    assert contents(where) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert contents(stage(data.root, tmp_path / "local")) == shards(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    stage(data.root, tmp_path / "local")  # all there: nothing is needed


def test_what_another_rank_is_copying_is_not_needed_again(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a shard is there, under its temporary name, and takes up what is no longer free."""
    data = packed(shards=1, each=4)
    where = stage(data.root, tmp_path / "local")
    copy = where / data.records[0].file
    copy.rename(where / f".{copy.name}.tmp")
    os.truncate(where / f".{copy.name}.tmp", 1 << 20)
    taken = (where / f".{copy.name}.tmp").stat().st_blocks * 512
    assert taken > 0
    needed = data.records[0].bytes - taken
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert contents(stage(data.root, tmp_path / "local")) == shards(data)


@pytest.mark.parametrize("where", ["image", "metadata", "missing"])
def test_what_is_damaged_is_not_copied(packed: Build, tmp_path: Path, where: str) -> None:
    data = packed(shards=3, each=4)
    record = data.records[1]
    path = data.root / record.file
    raw = bytearray(path.read_bytes())
    raw[record.data_offset + record.data_bytes - 1 if where == "image" else 2000] ^= 1
    path.unlink() if where == "missing" else path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{record.file}.*(damaged|missing)"):
        stage(data.root, tmp_path / "local")
    (target,) = (tmp_path / "local").iterdir()
    assert set(contents(target)) == {data.records[0].file}


def test_a_shard_that_changes_while_it_is_copied_is_not_taken(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its labels, say, once they have been checked and before they are copied."""
    data = packed(each=4)
    path = data.root / data.records[0].file
    read_shard = staging_module.read_shard

    def then_changed(*arguments: Any) -> Any:
        shard = read_shard(*arguments)
        raw = bytearray(path.read_bytes())
        raw[2000] ^= 1
        path.write_bytes(raw)
        return shard

    monkeypatch.setattr(staging_module, "read_shard", then_changed)
    with pytest.raises(DataError, match="changed while it was copied"):
        stage(data.root, tmp_path / "local")


def test_the_disk_that_fills_up_is_exit_74_and_leaves_nothing_half(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(each=4)

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device \(.* bytes free\)"):
        stage(data.root, tmp_path / "local")
    (where,) = (tmp_path / "local").iterdir()
    assert contents(where) == {}


def test_whoever_waits_is_alive_as_long_as_the_copy_grows(packed: Build, tmp_path: Path) -> None:
    """For the watchdog: a rank that waits beats when the other's copy grows, and only then."""
    data = packed(each=4)
    where = stage(data.root, tmp_path / "local")
    copy = where / data.records[0].file
    content = copy.read_bytes()
    temporary = where / f".{copy.name}.tmp"
    copy.rename(temporary)
    os.truncate(temporary, 0)
    beats: list[float] = []
    with open(temporary, "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(
            target=lambda: stage_shards(
                data.root, ("train",), tmp_path / "local", lambda: beats.append(time.monotonic())
            ),
            daemon=True,
        )
        waiting.start()
        time.sleep(0.5)
        assert beats == []
        other.write(content)
        other.flush()
        os.fsync(other.fileno())
        deadline = time.monotonic() + 10
        while not beats and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(beats) == 1
        temporary.rename(copy)
    waiting.join(10)
    assert not waiting.is_alive()
