"""Many bytes are on a node once, whoever opens them, dies, or gets at the copy."""

import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_origin import FileOrigin

from hvdyolo.data import node_memory
from hvdyolo.data.node_memory import NodeMemory
from hvdyolo.utils.errors import DataError, StorageError

CONTENT = bytes(range(256)) * 1000
OTHERS = 12345  # nobody's user number


@pytest.fixture
def origin(tmp_path: Path) -> FileOrigin:
    path = tmp_path / "origin"
    path.write_bytes(CONTENT)
    return FileOrigin.of(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are made of whatever size."""
    place = tmp_path / "node"
    place.mkdir()
    monkeypatch.setattr(node_memory, "_SHARED_FROM", 1)
    monkeypatch.setattr(node_memory, "_places", lambda: (place, tmp_path / "second"))
    return place


def never() -> None:
    raise AssertionError("what was copied is copied again")


def folder(place: Path) -> Path:
    return place / f"hvdyolo-index-{os.geteuid()}"


def copies(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder(place).iterdir()}


def test_few_bytes_are_in_the_process_and_leave_nothing(
    origin: FileOrigin, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_memory, "_SHARED_FROM", len(CONTENT) + 1)
    opened = NodeMemory(origin, "name")
    assert (opened.data, opened.copy) == (CONTENT, None)
    assert not folder(place).exists()
    origin.path.unlink()
    assert pickle.loads(pickle.dumps(opened)).data == CONTENT


def test_many_bytes_are_mapped_read_only_from_a_copy_of_the_user_alone(
    origin: FileOrigin, place: Path
) -> None:
    opened = NodeMemory(origin, "name")
    assert isinstance(opened.data, mmap)
    assert opened.data[:] == CONTENT
    with pytest.raises(TypeError):
        opened.data[0] = 1
    assert opened.copy == folder(place) / "name"
    assert copies(place) == {"name": CONTENT}
    assert (folder(place).stat().st_mode & 0o777, opened.copy.stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_next_one_finds_the_copy_and_needs_no_file(origin: FileOrigin, place: Path) -> None:
    first = NodeMemory(origin, "name")
    origin.path.unlink()
    assert NodeMemory(replace(origin, check=never), "name").data[:] == CONTENT
    del first
    assert NodeMemory(replace(origin, check=never), "name").data[:] == CONTENT


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[6])
from file_origin import FileOrigin
from hvdyolo.data import node_memory
node_memory._SHARED_FROM = 1
node_memory._places = lambda: (Path(sys.argv[2]),)
path, size, digest, what = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
def check():
    print("checks", flush=True)
    if what == "freeze":
        sys.stdin.readline()
class Origin(FileOrigin):
    def matches(self, data):
        print("compares", flush=True)
        return super().matches(data)
print("ready", flush=True)
sys.stdin.readline()
found = node_memory.NodeMemory(Origin(path, size, digest, check), "name")
print("reads", opened.count(str(path)), found.copy, found.data[:] == bytes(range(256)) * 1000, flush=True)
sys.stdin.readline()
"""

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def child(origin: FileOrigin, place: Path) -> Iterator[Child]:
    """Start a process that is ready to open the file when it is given a line."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str = "") -> "subprocess.Popen[str]":
        words = [origin.path, place, origin.size, origin.digest, what, Path(__file__).parent]
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_many_processes_one_reads_the_file(place: Path, child: Child) -> None:
    processes = [child() for _ in range(4)]
    for process in processes:
        go_on(process)
    outputs = [process.communicate("\n", timeout=60)[0].splitlines() for process in processes]
    path = folder(place) / "name"
    assert sorted(output[-1] for output in outputs) == [f"reads {n} {path} True" for n in (0, 0, 0, 1)]
    assert sum(output.count("checks") for output in outputs) == 1
    assert copies(place) == {"name": CONTENT}


def test_where_the_maker_is_killed_who_waits_takes_over(place: Path, child: Child) -> None:
    maker, waiting = child("freeze"), child()
    go_on(maker)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "checks\n"
    assert copies(place) == {"name.tmp": CONTENT}
    go_on(waiting)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=1)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    told = waiting.communicate(timeout=60)[0].splitlines()
    assert told == ["checks", f"reads 1 {folder(place) / 'name'} True"]
    assert copies(place) == {"name": CONTENT}


def test_who_waited_for_the_maker_finds_what_it_made(place: Path, child: Child) -> None:
    maker, waiting = child("freeze"), child()
    go_on(maker)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "checks\n"
    go_on(waiting)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=1)
    finding = child()
    go_on(maker)
    found = f"reads 0 {folder(place) / 'name'} True"
    assert waiting.communicate(timeout=60)[0].splitlines() == [found]
    go_on(finding)  # whose bytes may be those of an hour ago
    assert finding.communicate(timeout=60)[0].splitlines() == ["compares", found]


def cut(path: Path) -> None:
    os.truncate(path, len(CONTENT) // 2)


def flip(path: Path) -> None:
    raw = bytearray(CONTENT)
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def lengthen(path: Path) -> None:
    path.write_bytes(CONTENT + b"\0")


def give_away(path: Path) -> None:
    os.chown(path, OTHERS, -1)


def share(path: Path) -> None:
    path.chmod(0o644)


def let_write(path: Path) -> None:
    path.chmod(0o620)


def replace_by_another(path: Path) -> None:
    path.unlink()
    path.write_bytes(bytes(len(CONTENT)))
    path.chmod(0o600)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.parametrize(
    "damage",
    [cut, flip, lengthen, share, let_write, replace_by_another, pytest.param(give_away, marks=needs_root)],
)
def test_a_copy_that_is_not_the_file_is_made_anew(
    origin: FileOrigin, place: Path, damage: Callable[[Path], None]
) -> None:
    first = NodeMemory(origin, "name")
    assert first.copy is not None
    pickled = pickle.dumps(first)
    del first
    damage(folder(place) / "name")
    for again in (NodeMemory(origin, "name"), pickle.loads(pickled)):
        assert again.data[:] == CONTENT
        assert again.copy is not None
        status = again.copy.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o600)
    assert copies(place) == {"name": CONTENT}


@pytest.mark.parametrize("damage", [flip, replace_by_another])
def test_a_worker_compares_what_its_rank_has_not_seen(
    origin: FileOrigin, place: Path, damage: Callable[[Path], None]
) -> None:
    rank = NodeMemory(origin, "name")
    pickled = pickle.dumps(rank)
    del rank
    os.utime(folder(place) / "name", ns=(0, 0))
    pickled_of_old = pickle.loads(pickled)
    assert pickled_of_old.data[:] == CONTENT  # not seen, compared, and the same
    del pickled_of_old
    damage(folder(place) / "name")
    assert pickle.loads(pickled).data[:] == CONTENT


def test_a_worker_maps_the_copy_of_its_rank_without_reading_it(
    origin: FileOrigin, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = NodeMemory(origin, "name")
    pickled = pickle.dumps(rank)
    assert len(pickled) < 1000
    origin.path.unlink()

    def compare(*_: object) -> bool:
        raise AssertionError("the copy is compared again")

    monkeypatch.setattr(FileOrigin, "matches", compare)
    worker = pickle.loads(pickled)
    assert worker.copy == rank.copy
    assert worker.data[:] == CONTENT


def test_a_worker_whose_copy_was_removed_makes_it_anew(origin: FileOrigin, place: Path) -> None:
    rank = NodeMemory(origin, "name")
    pickled = pickle.dumps(rank)
    shutil.rmtree(folder(place))
    assert rank.data[:] == CONTENT  # it has it still
    assert pickle.loads(pickled).data[:] == CONTENT
    assert copies(place) == {"name": CONTENT}


@pytest.mark.parametrize("whose", ["open to others", pytest.param("another's", marks=needs_root), "a link"])
def test_a_folder_that_others_can_write_to_is_not_used(
    origin: FileOrigin, place: Path, tmp_path: Path, whose: str
) -> None:
    mine = folder(place)
    if whose == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        mine.symlink_to(tmp_path / "elsewhere")
    else:
        mine.mkdir(mode=0o700)
        (mine / "name").write_bytes(CONTENT)
        mine.chmod(0o770) if whose == "open to others" else os.chown(mine, OTHERS, -1)
    (tmp_path / "second").mkdir()
    opened = NodeMemory(origin, "name")
    assert opened.data[:] == CONTENT
    assert opened.copy == folder(tmp_path / "second") / "name"
    assert not (tmp_path / "elsewhere").exists() or not list((tmp_path / "elsewhere").iterdir())


def test_where_no_place_takes_it_the_bytes_are_in_the_process(
    origin: FileOrigin, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(CONTENT) - 1))
    opened = NodeMemory(origin, "name")
    assert (opened.data, opened.copy) == (CONTENT, None)
    assert copies(place) == {}
    assert pickle.loads(pickle.dumps(opened)).data == CONTENT


def test_a_place_that_fills_up_meanwhile_is_left_as_it_was(
    origin: FileOrigin, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "second").mkdir()
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if place in target.parents:
            raise OSError(28, os.strerror(28))
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    assert NodeMemory(origin, "name").copy == folder(tmp_path / "second") / "name"
    assert copies(place) == {}


def test_a_place_that_is_full_before_all_is_there_is_left_as_it_was(
    origin: FileOrigin, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "second").mkdir()
    pwrite = os.pwrite

    def fill(descriptor: int, piece: memoryview, start: int) -> int:
        """Half of what is to be written fits."""
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent != folder(place):
            return pwrite(descriptor, piece, start)
        if start:
            raise OSError(28, os.strerror(28))
        return pwrite(descriptor, piece[: len(piece) // 2], start)

    monkeypatch.setattr(os, "pwrite", fill)
    opened = NodeMemory(origin, "name")
    assert opened.data[:] == CONTENT
    assert opened.copy == folder(tmp_path / "second") / "name"
    assert copies(place) == {}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, r"has \d+ bytes and should have"),
        (lengthen, r"has \d+ bytes and should have"),
        (flip, "is damaged"),
        (Path.unlink, "is missing"),
    ],
)
@pytest.mark.parametrize("shared_from", [1, 1 << 30])
def test_a_damaged_file_is_refused_and_leaves_no_copy(
    origin: FileOrigin,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared_from: int,
    damage: Callable[[Path], None],
    says: str,
) -> None:
    monkeypatch.setattr(node_memory, "_SHARED_FROM", shared_from)
    damage(origin.path)
    with pytest.raises(DataError, match=rf"origin {says}"):
        NodeMemory(replace(origin, check=never), "name")
    assert not folder(place).exists() or copies(place) == {}


def test_a_file_that_cannot_be_read_is_exit_74(origin: FileOrigin, place: Path) -> None:
    origin.path.unlink()
    origin.path.mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*origin"):
        NodeMemory(replace(origin, check=never), "name")
    assert copies(place) == {}


def test_what_will_not_do_is_not_kept(origin: FileOrigin, place: Path) -> None:
    def refuse() -> None:
        raise DataError("nonsense")

    for _ in range(2):
        with pytest.raises(DataError, match="nonsense"):
            NodeMemory(replace(origin, check=refuse), "name")
        assert copies(place) == {}


def test_copies_stay_until_another_is_made_and_nobody_uses_them(
    origin: FileOrigin, place: Path, child: Child
) -> None:
    """The child uses ``name``, which it found; what a killed maker left is in the way of nobody."""
    NodeMemory(origin, "name")
    process = child()
    go_on(process)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("reads"):
        pass
    NodeMemory(origin, "unused")
    (folder(place) / "killed.tmp").write_bytes(b"half")
    used = NodeMemory(origin, "used")
    assert set(copies(place)) == {"name", "used"}
    process.communicate("\n", timeout=60)
    last = NodeMemory(origin, "last")
    assert set(copies(place)) == {"used", "last"}
    assert (used.data[:], last.data[:]) == (CONTENT, CONTENT)


def test_a_copy_in_making_is_nobodys_to_remove(origin: FileOrigin, place: Path) -> None:
    def try_to_remove() -> None:
        (temporary,) = folder(place).iterdir()
        with open(temporary, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    NodeMemory(replace(origin, check=try_to_remove), "name")
