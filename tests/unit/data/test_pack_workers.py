"""Packing by several processes, of a command of its own: a server of workers stays as long as its process."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdyolo.data import pack_workers
from hvdyolo.data.pack import main
from hvdyolo.data.pack_shard import ShardOrder

# Shards of 20 KiB, and a process for each few images.
COMMAND = """
import sys
from hvdyolo.data import pack, pack_shards
pack._BYTES_A_MIB, pack_shards._BYTES_A_PROCESS = 20 << 10, 1
from hvdyolo.cli import main
sys.exit(main(["pack", *sys.argv[1:]]))
"""
IMAGES = 40


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """A YOLO folder of noise images, some with a polygon."""
    root = tmp_path / "source"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        (root / f"images/train/{number:03d}.jpg").write_bytes(encode(pixels, "JPEG"))
        rows = f"{number % 2} 0.5 0.5 0.25 {(number + 10) / 100}\n"
        polygon = "1 0.25 0.125 0.75 0.25 0.5 0.875\n" if number % 3 == 0 else ""
        (root / f"labels/train/{number:03d}.txt").write_text(rows + polygon)
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    return root


def words(root: Path, out: Path, *more: object, source: str = "yolo") -> list[str]:
    return ["--source", source, "--root", str(root), "--out", str(out), "--shard-mb", "1", *map(str, more)]


def start(
    root: Path, out: Path, *more: object, rank: int = 0, size: int = 1, **options: Any
) -> subprocess.Popen[str]:
    """One rank, as ``mpirun`` would start it."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words(root, out, "--workers", 3, *more, **options)],
        env=os.environ | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def alone(monkeypatch: pytest.MonkeyPatch, root: Path, out: Path, *more: object, **options: Any) -> None:
    """The same by this process alone."""
    monkeypatch.setattr("hvdyolo.data.pack._BYTES_A_MIB", 20 << 10)
    assert main(words(root, out, "--workers", 1, *more, **options)) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*.tmp*")]


def descendants(process: int) -> list[int]:
    """Processes below one, the server of workers first."""
    children = list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    return [*children, *(below for child in children for below in descendants(child))]


def hold_at(path: Path) -> None:
    """Whoever reads this file waits until somebody writes it."""
    path.unlink()
    os.mkfifo(path)


def reader_of(path: Path) -> int:
    """A descriptor to write to the one that waits there; waits for him."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize("more", [("--polygons",), ("--imgsz", 32, "--skip-unreadable")])
def test_processes_write_the_same_bytes_as_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    if "--skip-unreadable" in more:
        (folder / "images/train/011.jpg").write_bytes(b"no image")
    code, output = ended(start(folder, tmp_path / "out", *more))
    assert code == 0, output
    alone(monkeypatch, folder, tmp_path / "alone", *more)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert len(list((tmp_path / "out").glob("*.h5"))) > 3


@pytest.mark.parametrize("source", ["coco", "voc"])
def test_the_labels_of_any_source_reach_the_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    names = [f"{number:03d}" for number in range(IMAGES)]
    if source == "coco":
        (folder / "annotations").mkdir()
        content = {
            "images": [
                {"id": k, "file_name": f"{name}.jpg", "width": 64, "height": 48}
                for k, name in enumerate(names)
            ],
            "annotations": [
                {"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [k, 2, 9, 20]}
                for k in range(IMAGES)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        (folder / "annotations/instances_train.json").write_text(json.dumps(content))
    else:
        (folder / "images/train").rename(folder / "JPEGImages")
        (folder / "Annotations").mkdir()
        (folder / "ImageSets/Main").mkdir(parents=True)
        (folder / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in names))
        for k, name in enumerate(names):
            box = f"<xmin>{k}</xmin><ymin>2</ymin><xmax>{k + 9}</xmax><ymax>22</ymax>"
            text = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
            (folder / f"Annotations/{name}.xml").write_text(text)
    code, output = ended(start(folder, tmp_path / "out", source=source))
    assert code == 0, output
    assert f"{IMAGES} images, {IMAGES} boxes" in output
    alone(monkeypatch, folder, tmp_path / "alone", source=source)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.parametrize("fault", ["image", "file size"])
def test_a_mistake_is_told_as_by_one_process_and_the_others_tidy_up(
    folder: Path, tmp_path: Path, fault: str
) -> None:
    if fault == "image":
        (folder / "images/train/017.jpg").write_bytes(b"no image")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # where images begin in a shard
    try:
        process = start(folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    code, output = ended(process)
    says = {"image": "017.jpg is not an image", "file size": "cannot write"}
    assert code == {"image": 65, "file size": 74}[fault], output
    assert (output.count("\n"), says[fault] in output) == (1, True), output
    assert leftovers(tmp_path / "out") == []
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_interrupted_it_tidies_up_and_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = folder / "images/train/017.jpg"
    encoded = image.read_bytes()
    hold_at(image)
    begun = image.stat().st_mtime_ns
    with fed({image: encoded}, {image: begun}):
        alone(monkeypatch, folder, tmp_path / "whole")

    process = start(folder, tmp_path / "out")
    writer = reader_of(image)
    done = wait_for_shards(tmp_path / "out")
    connected = open_files(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + 30
    while open_files(process.pid) >= connected:  # until the rank hangs up
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.write(writer, encoded)
    os.close(writer)
    code, output = ended(process)
    assert (code, "KeyboardInterrupt" in output) == (-signal.SIGINT, True), output
    assert leftovers(tmp_path / "out") == []
    # The shard that was held up was given up, though nothing was wrong with its image.
    assert set((tmp_path / "out").glob("*.h5")) == set(done)
    assert not (tmp_path / "out" / "manifest.json").exists()

    os.utime(image, ns=(begun, begun))
    again = start(folder, tmp_path / "out")
    writer = reader_of(image)
    os.write(writer, encoded)
    os.close(writer)
    code, output = ended(again)
    assert code == 0, output
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path: path.stat().st_ino for path in done} == done


def test_ranks_that_are_killed_go_on_as_any_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank is killed as it writes a shard, when it has some behind and some before it."""
    for number in range(IMAGES):
        shutil.copy(folder / f"images/train/{number:03d}.jpg", folder / f"images/train/more-{number:03d}.jpg")
    images = [folder / f"images/train/{number:03d}.jpg" for number in (20, 22)]
    content = {image: image.read_bytes() for image in images}
    for image in images:
        hold_at(image)
    begun = {image: image.stat().st_mtime_ns for image in images}
    with fed(content, begun):
        alone(monkeypatch, folder, tmp_path / "whole")

    out = tmp_path / "out"
    killed = [start(folder, out, "--workers", 1, rank=rank, size=2) for rank in range(2)]
    writers = list(map(reader_of, images))
    done = times(out, [path.stem for path in out.glob(".packing/*.h5.json")])
    for process in killed:
        os.killpg(process.pid, signal.SIGKILL)
    assert [ended(process)[0] for process in killed] == [-signal.SIGKILL] * 2
    for writer in writers:
        os.close(writer)
    assert (len(done), planned(out)) == (3, 9)
    assert len(leftovers(out)) == 2
    assert not (out / "manifest.json").exists()

    for ranks, workers in ((3, 1), (1, 3)):
        again = tmp_path / f"{ranks} ranks"
        shutil.copytree(out, again)
        with fed(content, begun):
            resumed = [
                start(folder, again, "--workers", workers, rank=rank, size=ranks) for rank in range(ranks)
            ]
            for process in resumed:
                code, output = ended(process)
                assert code == 0, output
        assert contents(again) == contents(tmp_path / "whole")
        assert leftovers(again) == []
        assert times(again, done) == done


@contextmanager
def fed(content: dict[Path, bytes], begun: dict[Path, int]) -> Iterator[None]:
    """Images that are held are given to their next reader; their times are as they were afterwards."""
    feeding = [
        threading.Thread(target=image.write_bytes, args=(content[image],), daemon=True) for image in content
    ]
    for thread in feeding:
        thread.start()
    yield
    for thread in feeding:
        thread.join()
    for image, time_ns in begun.items():
        os.utime(image, ns=(time_ns, time_ns))  # or the source would be another


def times(out: Path, names: Iterable[str]) -> dict[str, int]:
    """When each of some shards was written."""
    return {name: (out / name).stat().st_mtime_ns for name in names}


def planned(out: Path) -> int:
    """Number of shards."""
    return len(json.loads((out / ".packing/plan.json").read_text())["tasks"])


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def wait_for_shards(out: Path) -> dict[Path, int]:
    """All shards but the one that is held up, once they are there, and their inodes."""
    deadline = time.monotonic() + 30
    while len(list(out.glob(".packing/*.h5.json"))) < planned(out) - 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return {path: path.stat().st_ino for path in out.glob("*.h5")}


def test_a_worker_that_is_killed_ends_the_packing_with_the_reason(folder: Path, tmp_path: Path) -> None:
    image = folder / "images/train/017.jpg"
    hold_at(image)
    process = start(folder, tmp_path / "out")
    writer = reader_of(image)
    while not (waiting := [pid for pid in descendants(process.pid) if has_open(pid, image)]):
        time.sleep(0.02)
    (worker,) = waiting
    os.kill(worker, signal.SIGKILL)
    code, output = ended(process)
    os.close(writer)
    assert code == 70, output
    assert f"A packing process ({worker}) was killed by SIGKILL, often for lack of memory" in output
    assert (output.count("\n"), "Traceback" in output) == (1, False), output


def has_open(process: int, path: Path) -> bool:
    return any(os.path.realpath(link) == str(path) for link in Path(f"/proc/{process}/fd").iterdir())


def test_workers_end_with_a_rank_that_is_killed(folder: Path, tmp_path: Path) -> None:
    image = folder / "images/train/017.jpg"
    hold_at(image)
    process = start(folder, tmp_path / "out")
    writer = reader_of(image)
    below = descendants(process.pid)
    assert len(below) >= 4  # three, and their server
    process.kill()
    ended(process)
    deadline = time.monotonic() + 30
    while alive := [pid for pid in below if is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    os.close(writer)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_bug_in_a_worker_is_told_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(order: ShardOrder, tell: Callable[[int], None]) -> None:
        raise ZeroDivisionError("here")

    monkeypatch.setattr(pack_workers, "make_shard", fail)
    ours, theirs = pack_workers.WorkerContext().Pipe()
    theirs.send(pack_workers._answer(None, theirs))  # type: ignore[arg-type]
    packers = object.__new__(pack_workers.PackWorkers)
    with pytest.raises(RuntimeError, match=r"(?s)packing process failed.*Traceback.*ZeroDivisionError: here"):
        packers._receive(ours)
