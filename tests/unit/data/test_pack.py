import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data import pack as pack_module
from hvdyolo.data import pack_shards
from hvdyolo.data.images import decode
from hvdyolo.data.inspection import main as inspect
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.outlines import Outlines
from hvdyolo.data.pack import main
from hvdyolo.data.pack_shard import ShardOrder, make_shard
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.synth import write_dataset
from hvdyolo.data.verify import verify_packed
from hvdyolo.utils.errors import (
    DataError,
    InternalError,
    MismatchError,
    StorageError,
    UsageError,
)


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Make a YOLO folder of ``count`` noise images a split, each with one box."""

    def make(**counts: int) -> Path:
        root = tmp_path / "source"
        for split, count in counts.items():
            for number in range(count):
                image = root / "images" / split / f"{number:03d}.jpg"
                label = root / "labels" / split / f"{number:03d}.txt"
                for path in (image, label):
                    path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
                image.write_bytes(encode(pixels, "JPEG"))
                label.write_text(f"{number % 2} 0.5 0.5 0.25 {(number + 10) / 100}\n")
        splits = "".join(f"{split}: images/{split}\n" for split in counts)
        (root / "data.yaml").write_text(splits + "names: [cat, dog]\n")
        return root

    return make


def pack(root: Path, out: Path, *more: object, rank: int = 0, size: int = 1, source: str = "yolo") -> int:
    return main(["--source", source, "--root", str(root), "--out", str(out), *map(str, more)], rank, size)


def draw_polygons(root: Path) -> None:
    """Give every second image of a folder a triangle and another box."""
    for path in sorted(root.glob("labels/*/*.txt"))[1::2]:
        path.write_text("1 0.25 0.125 0.75 0.25 0.5 0.875\n0 0.5 0.5 0.25 0.125\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_packed_bytes_are_the_source_bytes_with_their_labels(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = folder(train=20, val=5)
    before = contents(root)
    assert pack(root, tmp_path / "out") == 0
    assert contents(root) == before
    for name, count in (("train", 20), ("val", 5)):
        split = PackedSplit(tmp_path / "out", name)
        assert split.names == ("cat", "dog")
        assert sorted(split.name(index) for index in range(len(split))) == [
            f"{number:03d}.jpg" for number in range(count)
        ]
        for index in range(count):
            number = int(split.name(index)[:3])
            assert split.read(index) == before[f"images/{name}/{split.name(index)}"]
            assert split.sample_id(index) == number
            assert split.size(index) == split.source_size(index) == (48, 64)
            assert split.labels(index).tolist() == [
                pytest.approx([number % 2, 0.5, 0.5, 0.25, (number + 10) / 100])
            ]


def test_samples_are_shuffled(folder: Callable[..., Path], tmp_path: Path) -> None:
    pack(folder(train=30), tmp_path / "out")
    split = PackedSplit(tmp_path / "out", "train")
    ids = np.array([split.sample_id(index) for index in range(30)])
    assert (np.diff(ids) != 1).mean() > 0.8
    assert len({label for index in range(6) for label in split.labels(index)[:, 0]}) == 2


def test_nothing_but_shards_manifest_and_report_is_left(folder: Callable[..., Path], tmp_path: Path) -> None:
    pack(folder(train=3, test=2), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "lint.json", "lint.txt", "manifest.json",
        "test-00000-of-00001.h5", "train-00000-of-00001.h5",
    ]  # fmt: skip


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of about 10 KiB, so that few images make many."""
    monkeypatch.setattr(pack_module, "_BYTES_A_MIB", 10 << 10)


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Results, or the errors, of calls that run at the same time, as ranks do."""
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank waits for ever"
    return results


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize(
    ("size", "workers", "more"),
    [(1, 4, ()), (2, 1, ()), (3, 2, ()), (40, 1, ()), (1, 3, ("--polygons",)), (3, 2, ("--polygons",))],
)
def test_any_number_of_ranks_and_workers_writes_the_same_bytes(
    folder: Callable[..., Path], tmp_path: Path, size: int, workers: int, more: tuple[str, ...]
) -> None:
    root = folder(train=40, val=12)
    draw_polygons(root)
    pack(root, tmp_path / "one", "--shard-mb", 1, "--workers", 1, *more)
    assert len(list((tmp_path / "one").glob("train-*.h5"))) > 5
    ranks = [
        lambda rank=rank: pack(
            root, tmp_path / "many", "--shard-mb", 1, "--workers", workers, *more, rank=rank, size=size
        )
        for rank in range(size)
    ]
    assert in_threads(*ranks) == [0] * size
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.usefixtures("many_shards")
def test_shards_are_of_about_the_size_asked_for(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=40)
    total = sum(path.stat().st_size for path in (root / "images/train").iterdir())
    pack(root, tmp_path / "out", "--shard-mb", 2)
    shards = read_manifest(tmp_path / "out").splits["train"].shards
    assert sum(shard.data_bytes for shard in shards) == total
    assert all(abs(shard.data_bytes - (20 << 10)) < 8 << 10 for shard in shards)


def as_lists(outlines: Outlines) -> list[list[list[list[float]]]]:
    return [[polygon.tolist() for polygon in outline] for outline in outlines]


@pytest.mark.usefixtures("many_shards")
def test_polygons_are_kept_beside_the_same_shards(
    folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of images that are shrunk too, and whatever is left out before them."""
    root = folder(train=20, val=4)
    draw_polygons(root)
    (root / "images/train/003.jpg").write_text("no image")
    words = "--shard-mb", 1, "--imgsz", 32, "--skip-unreadable"
    pack(root, tmp_path / "without", *words)
    assert " polygons" not in capsys.readouterr().out
    assert '"polygons"' not in (tmp_path / "without/manifest.json").read_text()
    pack(root, tmp_path / "with", *words, "--polygons")
    assert "train: 19 images, 28 boxes, 9 polygons" in capsys.readouterr().out
    before, after = contents(tmp_path / "without"), contents(tmp_path / "with")
    assert after.keys() - before.keys() == {"train.polygons", "val.polygons"}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    split = PackedSplit(tmp_path / "with", "train", outlines=True)
    for index in range(19):
        triangle = [[0.25, 0.125], [0.75, 0.25], [0.5, 0.875]]
        wanted = [[triangle], []] if split.sample_id(index) % 2 else [[]]
        assert as_lists(split.outlines(index)) == wanted
    verify_packed(tmp_path / "with")


def test_of_coco_polygons_are_kept_and_masks_are_counted(
    tmp_path: Path, encode: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "coco"
    for folder in ("annotations", "train"):
        (root / folder).mkdir(parents=True)
    (root / "train/a.png").write_bytes(encode(np.zeros((50, 100, 3), np.uint8)))
    triangle, square = [10, 10, 30, 10, 10, 30], [50, 20, 90, 20, 90, 40, 50, 40]
    segmentations = [
        [triangle, square],
        {"counts": [5, 3], "size": [50, 100]},  # the mask of a crowd
        [],
        {"counts": "abc", "size": [50, 100]},  # an object's
        [triangle[:4], triangle, [1, 2, 3], [5, 5, 6, float("nan"), 7, 7], "x", [900, 0, 1, 1, 2, 2]],
        None,
    ]
    rows = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [number, 5, 50, 40], "iscrowd": number == 1}
        | ({} if segmentation is None else {"segmentation": segmentation})
        for number, segmentation in enumerate(segmentations)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    assert pack(root, tmp_path / "out", "--polygons", source="coco") == 0
    told = capsys.readouterr().out
    assert "6 boxes, 3 polygons" in told
    assert "     2  outlines given as a mask of pixels (RLE)" in told
    assert "     5  polygons of fewer than three points" in told
    assert "polygon: annotation 4 of a.png: of 4 numbers" in told
    split = PackedSplit(tmp_path / "out", "train", outlines=True)
    kept = [np.reshape(points, (-1, 2)) / (100, 50) for points in (triangle, square)]
    found = split.outlines(0)
    assert [len(outline) for outline in found] == [2, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(found[0][0], kept[0], atol=1e-7)
    np.testing.assert_allclose(found[0][1], kept[1], atol=1e-7)
    np.testing.assert_allclose(found[4][0], kept[0], atol=1e-7)
    # What is asked for polygons alone is not told where they are not kept.
    assert pack(root, tmp_path / "boxes", source="coco") == 0
    assert "nothing found" in capsys.readouterr().out


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("more", [(), ("--polygons",)])
def test_an_interrupted_packing_looks_unfinished_and_goes_on(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    root = folder(train=40)
    draw_polygons(root)
    pack(root, tmp_path / "whole", "--shard-mb", 1, *more)
    packed: list[str] = []

    def interrupted(order: ShardOrder, tell: Callable[[int], None]) -> None:
        if len(packed) == 3:
            raise KeyboardInterrupt
        packed.append(order.task.file)
        make_shard(order, tell)

    monkeypatch.setattr(pack_shards, "make_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path / "out", "--shard-mb", 1, *more)
    with pytest.raises(UsageError, match="not a packed dataset"):
        read_manifest(tmp_path / "out")
    first = packed.copy()
    packed.append("so that it is not interrupted again")
    assert pack(root, tmp_path / "out", "--shard-mb", 1, *more) == 0
    assert not set(first) & set(packed[4:])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("change", [("--quality", 50, "--imgsz", 32), ("--polygons",), ("--shard-mb", 2), ()])
def test_an_unfinished_packing_of_something_else_is_refused(
    folder: Callable[..., Path], tmp_path: Path, change: tuple[object, ...]
) -> None:
    root = folder(train=40)
    image = root / "images/train/007.jpg"
    good = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(DataError):
        pack(root, tmp_path / "out", "--shard-mb", 1)
    image.write_bytes(good)
    if not change:  # it is the source that has
        shutil.copy(image, root / "images/train/100.jpg")
    with pytest.raises(MismatchError, match="unfinished packing of another source or with other settings"):
        pack(root, tmp_path / "out", "--shard-mb", 1, *change)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are made from now on, those included that fail."""
    files: list[str] = []

    def noted(order: ShardOrder, tell: Callable[[int], None]) -> None:
        files.append(order.task.file)
        make_shard(order, tell)

    monkeypatch.setattr(pack_shards, "make_shard", noted)
    return files


def images_of_shards(root: Path, scratch: Path, *more: object) -> list[list[str]]:
    """Names of the images of each shard."""
    pack(root, scratch, *more)
    split = PackedSplit(scratch, "train")
    names: dict[str, list[str]] = {}
    for index in range(len(split)):
        names.setdefault(split.shard_file(index), []).append(split.name(index))
    return list(names.values())


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("cure", ["repair", "skip", "repair polygons"])
def test_what_stopped_a_packing_is_cured_and_it_goes_on(
    folder: Callable[..., Path], tmp_path: Path, made: list[str], cure: str
) -> None:
    root = folder(train=24)
    draw_polygons(root)
    words = ("--shard-mb", 1, *(["--polygons"] if "polygons" in cure else []))
    shards = images_of_shards(root, tmp_path / "scratch", *words)
    image = root / "images/train" / shards[5][0]
    good = image.read_bytes()
    image.write_bytes(good[:-100] + b"\xff\xd9")
    made.clear()
    with pytest.raises(DataError, match=f"{image.name} is damaged: .*--skip-unreadable"):
        pack(root, tmp_path / "out", *words)
    assert len(made) == 6  # the last of which failed
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")}
    assert len(finished) == 5
    if cure == "skip":
        words = (*words, "--skip-unreadable")
    else:
        image.write_bytes(good)
    made.clear()
    assert pack(root, tmp_path / "out", *words) == 0
    assert len(made) == len(shards) - 5
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    pack(root, tmp_path / "fresh", *words)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert len(PackedSplit(tmp_path / "out", "train")) == 24 - (cure == "skip")


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("ranks_again", [1, 3])
def test_of_a_source_that_changed_meanwhile_only_those_shards_are_made_again(
    folder: Callable[..., Path], tmp_path: Path, made: list[str], ranks_again: int
) -> None:
    """Finished ones too, whose labels or images were changed, and whatever the size of these is now."""
    root = folder(train=40)
    words = "--shard-mb", 1
    shards = images_of_shards(root, tmp_path / "scratch", *words)
    stopper = root / "images/train" / shards[7][0]
    good = stopper.read_bytes()
    stopper.write_bytes(bytes(len(good)))
    with pytest.raises(DataError):
        pack(root, tmp_path / "out", *words)
    stopper.write_bytes(good)
    label = (root / "labels/train" / shards[1][0]).with_suffix(".txt")
    label.write_text("0 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.5 0.5\n")
    image = root / "images/train" / shards[3][-1]
    image.write_bytes(good)  # of another size
    made.clear()
    ranks = [
        lambda rank=rank: pack(root, tmp_path / "out", *words, rank=rank, size=ranks_again)
        for rank in range(ranks_again)
    ]
    assert in_threads(*ranks) == [0] * ranks_again
    assert sorted(int(name.split("-")[1]) for name in made) == [1, 3, *range(7, len(shards))]
    pack(root, tmp_path / "fresh", *words)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.usefixtures("many_shards")
def test_a_source_that_becomes_so_much_smaller_leaves_no_shard_behind(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = folder(train=24)
    stopper = root / "images/train/007.jpg"
    good = stopper.read_bytes()
    stopper.write_bytes(bytes(100_000))
    with pytest.raises(DataError):
        pack(root, tmp_path / "out", "--shard-mb", 1)
    assert list((tmp_path / "out").glob("*.h5"))
    stopper.write_bytes(good)
    pack(root, tmp_path / "out", "--shard-mb", 1)
    pack(root, tmp_path / "fresh", "--shard-mb", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.usefixtures("many_shards")
def test_shards_that_left_images_out_are_made_again_where_these_are_wanted(
    folder: Callable[..., Path],
    tmp_path: Path,
    made: list[str],
    encode: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = folder(train=24)
    small, large = ("--max-pixels", 64 * 48), ("--max-pixels", 64 * 49)
    words = "--shard-mb", 1, "--skip-unreadable"
    shards = images_of_shards(root, tmp_path / "scratch", *words)
    noise = np.random.default_rng(0).integers(0, 256, (49, 64, 3), dtype=np.uint8)
    (root / "images/train" / shards[2][0]).write_bytes(encode(noise, "JPEG"))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    def again(*more: object) -> list[int]:
        """Which shards are made by a packing that is interrupted when all are."""
        made.clear()
        with monkeypatch.context() as patch:
            patch.setattr(pack_module, "read_back", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pack(root, tmp_path / "out", *more)
        return [int(name.split("-")[1]) for name in made]

    assert again(*words, *small) == list(range(len(shards)))
    assert again(*words, *small) == []
    with pytest.raises(DataError, match="more than the limit of 3072; raise --max-pixels, or leave"):
        pack(root, tmp_path / "out", "--shard-mb", 1, *small)
    assert again(*words, *large) == [2]
    assert again("--shard-mb", 1, *large) == []
    assert again("--shard-mb", 1) == []
    with pytest.raises(DataError, match="raise --max-pixels"):
        pack(root, tmp_path / "out", "--shard-mb", 1, *small)
    assert pack(root, tmp_path / "out", "--shard-mb", 1) == 0
    pack(root, tmp_path / "fresh", "--shard-mb", 1, *large)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_folder_of_something_else_is_left_alone(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(MismatchError, match="is not empty") as caught:
        pack(root, out)
    assert caught.value.exit_code == 78
    assert contents(out) == {"thesis.tex": b"precious"}


def test_a_packed_dataset_is_not_overwritten(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=2)
    pack(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(MismatchError, match="already holds a packed dataset"):
        pack(root, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_an_output_that_cannot_be_made_is_exit_74(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/out"):
        pack(root, tmp_path / "file" / "out")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        pack(root, tmp_path / "file")


def test_a_mistake_leaves_no_folder_behind(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=2)
    with pytest.raises(UsageError):
        pack(root, tmp_path / "out", source="voc")
    with pytest.raises(UsageError):
        pack(root / "none", tmp_path / "out")
    with pytest.raises(UsageError):
        pack(root, tmp_path / "new/out", source="voc")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_mistake_leaves_the_users_own_folder_alone(
    folder: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    root, out = folder(train=2), tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    else:
        (tmp_path / "disk").mkdir()
        out.symlink_to(tmp_path / "disk")
    with pytest.raises(UsageError):
        pack(root, out, source="voc")
    assert list(out.iterdir()) == []
    assert out.is_symlink() == (kind == "link")
    assert pack(root, out) == 0


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_an_unreadable_image_is_named_or_left_out(
    folder: Callable[..., Path], tmp_path: Path, damage: bytes | None
) -> None:
    root = folder(train=6)
    image = root / "images/train/003.jpg"
    image.write_bytes(image.read_bytes()[:500] if damage is None else damage)
    with pytest.raises(DataError, match=r"003\.jpg .*--skip-unreadable") as caught:
        pack(root, tmp_path / "out")
    assert caught.value.exit_code == 65
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert pack(root, tmp_path / "out", "--skip-unreadable") == 0
    split = PackedSplit(tmp_path / "out", "train")
    assert sorted(split.sample_id(index) for index in range(len(split))) == [0, 1, 2, 4, 5]
    (finding,) = json.loads((tmp_path / "out" / "lint.json").read_text())["findings"]
    assert (finding["kind"], Path(finding["file"]).name) == ("unreadable", "003.jpg")


def told(out: Path) -> list[tuple[str, str, int]]:
    findings = json.loads((out / "lint.json").read_text())["findings"]
    return [(finding["kind"], Path(finding["file"]).name, finding["line"]) for finding in findings]


def test_bad_rows_are_left_out_and_told_and_cost_nothing_else(
    folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(train=6)
    bad = ["9 0.5 0.5 0.1 0.1", "0 0.5 0.5", "0 320 240 50 60"]
    for number, row in enumerate(bad):
        label = root / f"labels/train/{number:03d}.txt"
        label.write_text(f"{row}\n{label.read_text()}" if number else row)
    assert pack(root, tmp_path / "out") == 0
    split = PackedSplit(tmp_path / "out", "train")
    boxes = {split.sample_id(index): len(split.labels(index)) for index in range(len(split))}
    assert boxes == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    assert told(tmp_path / "out") == [
        ("unlabelled", "000.jpg", 0),
        ("unknown class", "000.txt", 1),
        ("unreadable row", "001.txt", 1),
        ("unreadable row", "002.txt", 1),
    ]
    assert json.loads((tmp_path / "out/lint.json").read_text())["counts"]["unreadable row"] == 2
    output = capsys.readouterr().out
    assert "     2  rows of labels that cannot be understood, left out" in output
    assert "002.txt:1: unreadable row: 320 looks like pixels" in output


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["9 0.5 0.5 0.1 0.1"] * 4, "4 would be left out .*see whether the list of class names"),
        (["1 320 240 50 60"] * 4, "4 would be left out .*see whether the labels are of the layout"),
        (["1 320 240 50 60"] * 3, None),
    ],
)
def test_a_dataset_is_not_lost_silently(
    folder: Callable[..., Path], tmp_path: Path, rows: list[str], says: str | None
) -> None:
    """Neither what is left of a split when most of it is lost, nor a report of what was."""
    root = folder(train=8, val=6)
    for number, row in enumerate(rows):
        (root / f"labels/val/{number:03d}.txt").write_text(row)
    if says is None:
        assert pack(root, tmp_path / "out") == 0
    else:
        with pytest.raises(DataError, match=rf"Of the 6 rows of the split 'val' {says}.*lint\.txt") as caught:
            pack(root, tmp_path / "out")
        assert "val/000.txt:1: " in str(caught.value)
        assert not (tmp_path / "out/manifest.json").exists()
    assert len([kind for kind, *_ in told(tmp_path / "out") if kind != "unlabelled"]) == len(rows)


def test_class_names_that_no_shard_holds_are_refused_before_packing(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    names = ",".join(f"class {number:060d}" for number in range(500))
    with pytest.raises(UsageError, match=r"--names: the 500 class names take 35,000 bytes.*holds 32,768"):
        pack(folder(train=2), tmp_path / "out", "--names", names)
    assert not (tmp_path / "out").exists()


def voc_folder(root: Path, encode: Callable[..., bytes], count: int) -> Path:
    """Noise images named by number, each with a cat and a dog."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    thing = f"<object><name>{{}}</name><bndbox>{box}</bndbox></object>"
    for number in range(count):
        (root / f"JPEGImages/{number:03d}.jpg").write_bytes(encode(number, "PNG"))
        text = f"<annotation>\n{thing.format('cat')}\n{thing.format('dog')}\n</annotation>"
        (root / f"Annotations/{number:03d}.xml").write_text(text)
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{number:03d}\n" for number in range(count)))
    return root


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("names", [(), ("--names", "cat,dog")])
def test_images_whose_labels_are_lost_are_no_background(
    tmp_path: Path, encode: Callable[..., bytes], names: tuple[str, ...]
) -> None:
    """For any number of ranks the same images are left out, whenever it is that their labels are read."""
    root = voc_folder(tmp_path / "voc", encode, 40)
    (root / "Annotations/003.xml").write_text("<annotation>")
    (root / "Annotations/017.xml").unlink()
    text = (root / "Annotations/020.xml").read_text()
    (root / "Annotations/020.xml").write_text(text.replace("<xmin>1</xmin>", "", 1))
    words = ["--shard-mb", 1, *names]
    assert pack(root, tmp_path / "one", *words, source="voc") == 0
    split = PackedSplit(tmp_path / "one", "train")
    assert len(list((tmp_path / "one").glob("train-*.h5"))) > 3
    boxes = {split.name(index): len(split.labels(index)) for index in range(len(split))}
    left = set(range(40)) - {3, 17}
    assert boxes == {f"{number:03d}.jpg": 1 if number == 20 else 2 for number in left}
    assert told(tmp_path / "one") == [
        ("unreadable labels", "003.xml", 1),
        ("unreadable row", "020.xml", 2),
        ("missing labels", "017.jpg", 0),
    ]
    ranks = [
        lambda rank=rank: pack(root, tmp_path / "many", *words, rank=rank, size=3, source="voc")
        for rank in range(3)
    ]
    assert in_threads(*ranks) == [0] * 3
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_label_file_that_is_no_text_costs_its_image(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=4)
    (root / "labels/train/002.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-16")
    assert pack(root, tmp_path / "out") == 0
    split = PackedSplit(tmp_path / "out", "train")
    assert sorted(split.name(index) for index in range(len(split))) == ["000.jpg", "001.jpg", "003.jpg"]
    assert told(tmp_path / "out") == [("unreadable labels", "002.txt", 0)]


def test_a_damaged_image_is_named_with_the_decoders_words_or_left_out(
    folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of images that are turned or shrunk too."""
    root = folder(train=6)
    images = root / "images/train"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "001.jpg").save(images / "001.jpg", quality=95, exif=exif)
    for name in ("001.jpg", "003.jpg"):
        good = (images / name).read_bytes()
        (images / name).write_bytes(good[: len(good) * 2 // 3] + b"\xff\xd9")
    for more in ((), ("--imgsz", 32)):
        out = tmp_path / f"out{len(more)}"
        with pytest.raises(DataError, match="is damaged: Corrupt JPEG data: premature end of data segment; "):
            pack(root, out, *more)
        assert pack(root, out, *more, "--skip-unreadable") == 0
        report = json.loads((out / "lint.json").read_text())
        assert report["counts"] == {"damaged": 2}
        assert report["images"] == {"train": 4}
        assert [(Path(row["file"]).name, row["detail"]) for row in report["findings"]] == [
            (name, "is damaged: Corrupt JPEG data: premature end of data segment")
            for name in ("001.jpg", "003.jpg")
        ]
        assert "damaged images, of which some pixels are lost" in capsys.readouterr().out


def test_a_file_system_that_fails_never_costs_an_image(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(train=3)
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "001.jpg":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StorageError, match=r"cannot read .*001\.jpg: Input/output error"):
        pack(root, tmp_path / "out", "--skip-unreadable")


def test_names_that_are_no_text_come_through(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=1)
    name = os.fsdecode(b"\xff\xe9.jpg")
    (root / "images/train/000.jpg").rename(root / "images/train" / name)  # leaves the labels behind
    assert pack(root, tmp_path / "out") == 0
    split = PackedSplit(tmp_path / "out", "train")
    assert split.name(0) == name
    assert os.fsencode(split.name(0)) == b"\xff\xe9.jpg"
    assert rb"\udcff\udce9.jpg: missing: no label file" in (tmp_path / "out" / "lint.txt").read_bytes()


def test_a_split_of_which_nothing_can_be_read_is_empty(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=2, val=2)
    for path in (root / "images/val").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="The split 'val' is empty: none of its images can be read"):
        pack(root, tmp_path / "out", "--skip-unreadable")


@pytest.mark.usefixtures("many_shards")
def test_a_shard_of_which_nothing_can_be_read_is_empty(
    folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(train=40)
    pack(root, tmp_path / "out", "--shard-mb", 1)
    split = PackedSplit(tmp_path / "out", "train")
    lost = [index for index in range(40) if split.shard_file(index).startswith("train-00001")]
    for index in lost:
        path = root / "images/train" / split.name(index)
        path.write_bytes(bytes(path.stat().st_size))
    assert pack(root, tmp_path / "less", "--shard-mb", 1, "--skip-unreadable") == 0
    less = PackedSplit(tmp_path / "less", "train")
    kept = [split.sample_id(index) for index in range(40) if index not in lost]
    assert [less.sample_id(index) for index in range(len(less))] == kept
    assert [less.read(index) for index in range(len(less))] == [
        split.read(index) for index in range(40) if index not in lost
    ]
    (shard,) = (tmp_path / "less").glob("train-00001-*")
    capsys.readouterr()
    assert inspect([str(shard)]) == 0
    assert capsys.readouterr().out.startswith(f"train: no images, {shard.name}\n  dataset ")
    assert inspect([str(tmp_path / "less")]) == 0
    assert f"train: {len(kept)} images, " in capsys.readouterr().out


def test_larger_images_are_shrunk_and_labels_stay(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=1)
    (root / "images/train/wide.png").write_bytes(png(np.full((30, 200, 3), 200, np.uint8)))
    (root / "labels/train/wide.txt").write_text("1 0.5 0.5 0.5 1.0\n")
    pack(root, tmp_path / "out", "--imgsz", 64)
    split = PackedSplit(tmp_path / "out", "train")
    found = {split.name(index): index for index in range(2)}
    small, wide = found["000.jpg"], found["wide.png"]
    assert split.read(small) == (root / "images/train/000.jpg").read_bytes()  # 64 is not larger than 64
    assert split.size(wide) == (10, 64)  # 30 · 64 / 200 = 9.6
    assert split.source_size(wide) == (30, 200)
    assert decode(split.read(wide), 10**6).shape == (10, 64, 3)
    assert split.labels(wide).tolist() == [[1, 0.5, 0.5, 0.5, 1.0]]
    settings = read_manifest(tmp_path / "out").settings
    assert (settings["max_side"], settings["quality"], settings["resampling"]) == (64, 95, "triangle")


def test_the_saving_is_told(
    folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(folder(train=3), tmp_path / "out", "--imgsz", 16, "--quality", 50)
    told = capsys.readouterr().out
    stored = sum(shard.data_bytes for shard in read_manifest(tmp_path / "out").splits["train"].shards)
    source = sum(path.stat().st_size for path in (tmp_path / "source/images/train").iterdir())
    assert f"images take {1 - stored / source:.0%} less than in the source" in told


def png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    import io

    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    return stream.getvalue()


def test_rotated_images_are_turned_and_told(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=1)
    stored = np.zeros((20, 40, 3), dtype=np.uint8)
    stored[:, :20] = 255  # orientation 6: the left half becomes the upper half
    (root / "images/train/turned.png").write_bytes(png(stored, 6))
    pack(root, tmp_path / "out")
    split = PackedSplit(tmp_path / "out", "train")
    (index,) = [index for index in range(2) if split.name(index) == "turned.png"]
    assert split.size(index) == split.source_size(index) == (40, 20)
    image = decode(split.read(index), 10**6)
    assert image[:18].min() > 250
    assert image[22:].max() < 5
    findings = json.loads((tmp_path / "out" / "lint.json").read_text())["findings"]
    assert {"kind": "rotated", "detail": "orientation 6, turned and encoded again"}.items() <= next(
        finding for finding in findings if finding["kind"] == "rotated"
    ).items()


@pytest.mark.parametrize(
    ("stated", "turned", "kinds"),
    [
        ((20, 40), True, ["rotated"]),
        ((40, 20), False, ["rotated"]),
        ((80, 40), True, ["resolution", "rotated"]),
    ],
)
def test_labels_tell_which_way_a_rotated_image_is_meant(
    tmp_path: Path, stated: tuple[int, int], turned: bool, kinds: list[str]
) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "images" / "a.png").write_bytes(png(np.zeros((20, 40, 3), dtype=np.uint8), 6))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": stated[0], "height": stated[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 20]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    pack(root, tmp_path / "out", source="coco")
    split = PackedSplit(tmp_path / "out", "train")
    assert split.size(0) == ((40, 20) if turned else (20, 40))
    width, height = (0.5, 0.5) if turned else (0.25, 1.0)
    assert split.labels(0).tolist() == [[0, width / 2, height / 2, width, height]]
    findings = json.loads((tmp_path / "out" / "lint.json").read_text())["findings"]
    assert sorted(finding["kind"] for finding in findings) == kinds


def test_bccd_is_packed_and_its_two_degenerate_boxes_are_told_by_file_and_line(packed_bccd: Path) -> None:
    manifest = read_manifest(packed_bccd)
    assert manifest.names == ("Platelets", "RBC", "WBC")
    assert {name: info.samples for name, info in manifest.splits.items()} == {
        "train": 205, "val": 87, "test": 72
    }  # fmt: skip
    boxes = sum(record.boxes for info in manifest.splits.values() for record in info.shards)
    assert boxes == 4888 - 2
    report = json.loads((packed_bccd / "lint.json").read_text())
    told = {
        f"{Path(finding['file']).name}:{finding['line']}"
        for finding in report["findings"]
        if finding["kind"] == "degenerate"
    }
    # <object> begins there: grep -n.
    assert told == {"BloodImage_00338.xml:158", "BloodImage_00343.xml:50"}


def test_a_drawn_dataset_is_packed_as_it_was_drawn(drawn: Path, synthetic: Path) -> None:
    split = PackedSplit(synthetic, "val")
    assert len(split) == 32
    for index in range(32):
        text = (drawn / "labels/val" / split.name(index)).with_suffix(".txt").read_text()
        expected = [[float(value) for value in line.split()] for line in text.splitlines()]
        assert split.labels(index).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shard-mb", 0], "--shard-mb must be at least 1, not 0"),
        (["--imgsz", -5], "--imgsz must be at least 1"),
        (["--workers", 0], "--workers must be at least 1"),
        (["--max-pixels", 0], "--max-pixels must be at least 1"),
        (["--max-pixels", 178956971], "--max-pixels must be at most 178956970, not 178956971"),
        (["--quality", 101], "--quality must be 1 … 100, not 101"),
        (["--imgsz", "large"], "argument --imgsz: invalid int value: 'large'"),
        (["--shards", 3], "unrecognized arguments: --shards 3"),
        (["--source", "pascal"], "invalid choice: 'pascal'"),
        (["--names", "cat,cat"], "'cat' twice"),
        (["--source", "voc", "--polygons"], "--polygons: annotations of VOC have boxes alone"),
        (["--names", ""], "empty class name"),
    ],
)
def test_wrong_words_are_one_sentence(
    folder: Callable[..., Path], tmp_path: Path, arguments: list[object], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        pack(folder(train=2), tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("many_shards")
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_ends_all_with_its_message(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    root = folder(train=40)
    gate = threading.Barrier(3)

    def fail_in_first(order: ShardOrder, tell: Callable[[int], None]) -> None:
        if order.task.number < 3:
            gate.wait()  # so that every rank is at work when one fails
        if order.task.number == failing:
            raise DataError("000.jpg is not an image.")
        time.sleep(0.5)
        make_shard(order, tell)

    monkeypatch.setattr(pack_shards, "make_shard", fail_in_first)
    ranks = [
        lambda rank=rank: pack(root, tmp_path / "out", "--shard-mb", 1, rank=rank, size=3)
        for rank in range(3)
    ]
    errors = in_threads(*ranks)
    assert [(type(error), str(error)) for error in errors] == [(DataError, "000.jpg is not an image.")] * 3
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_ranks_that_see_different_images_are_told(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(train=5)
    other = tmp_path / "other"
    shutil.copytree(root, other)
    (other / "images/train/000.jpg").rename(other / "images/train/zzz.jpg")

    def slowly(order: ShardOrder, tell: Callable[[int], None]) -> None:
        time.sleep(3)
        make_shard(order, tell)

    monkeypatch.setattr(pack_shards, "make_shard", slowly)
    errors = in_threads(
        lambda: pack(root, tmp_path / "out", rank=0, size=2),
        lambda: pack(other, tmp_path / "out", rank=1, size=2),
    )
    assert [type(error) for error in errors] == [InternalError] * 2
    assert all("do not see the same images" in str(error) for error in errors)


def test_a_rank_that_comes_when_all_is_done_leaves_again(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(train=5)
    pack(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert pack(root, tmp_path / "out", rank=1, size=2) == 0
    assert contents(tmp_path / "out") == before


def test_images_above_the_default_limit_of_training_are_told(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = folder(train=1)
    Image.new("1", (8000, 8001)).save(root / "images/train/large.png")
    with pytest.raises(DataError, match=r"large\.png has 8000 x 8001 pixels, .*; raise --max-pixels, "):
        pack(root, tmp_path / "out")
    pack(root, tmp_path / "out", "--max-pixels", 8000 * 8001)
    findings = json.loads((tmp_path / "out" / "lint.json").read_text())["findings"]
    assert [Path(finding["file"]).name for finding in findings if finding["kind"] == "large"] == ["large.png"]


def test_pillow_does_not_speak(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It warns of images of half as many pixels as it refuses."""
    root = folder(train=2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(root / "images/train/000.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack(root, tmp_path / "out") == 0


def test_the_same_drawn_data_packs_to_the_same_bytes_anywhere(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, images=6, classes=4, seed=3)
        pack(tmp_path / name, tmp_path / f"packed-{name}")
    assert contents(tmp_path / "packed-a") == contents(tmp_path / "packed-b")
