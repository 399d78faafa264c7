"""Merged files hold every record, in the words of their format, and appear whole or not at all."""

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hvdyolo.engine.detection_plan import Plan, commit_plan
from hvdyolo.engine.merge import merge_detections
from hvdyolo.engine.parts import Failed, Found, Parts, Record
from hvdyolo.utils.errors import DataError, UsageError

PLAN = Plan(
    images=4,
    chunk=3,
    image_list="images.jsonl",
    class_names=("cat", 'a "big", dog'),
    source="/photos",
    fingerprint={"weights": "abc"},
)
TWO_BOXES = [[10.5, 20.0, 110.5, 70.0], [0.0, 0.0, 640.0, 480.0]]
RECORDS: list[Record] = [
    Found("a/x.jpg", 0, 640, 480, TWO_BOXES, [0.9, 0.3], [1, 0], True),
    Found("a/y.png", 1, 100, 50, [], [], [], False),
    Failed("größe,1.jpg", 2, "broken", "cut short"),
    Found("z.jpg", 3, 200, 100, [[1.0, 2.0, 3.5, 4.25]], [0.5], [0], False),
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    commit_plan(tmp_path, PLAN)
    (tmp_path / "parts").mkdir()
    parts = Parts(tmp_path, PLAN)
    parts.commit(1, RECORDS[3:])
    parts.commit(0, RECORDS[:3])
    return tmp_path


def annotation(
    number: int, image: int, category: int, bbox: list[float], area: float, score: float
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
        "score": score,
    }


def test_coco_holds_everything(out: Path) -> None:
    path = merge_detections(out, "coco")
    assert path == out / "merged/detections.json"
    merged: dict[str, Any] = json.loads(path.read_text())
    assert [c["name"] for c in merged["categories"]] == ["cat", 'a "big", dog']
    assert [c["id"] for c in merged["categories"]] == [1, 2]
    assert merged["images"] == [
        {"id": 0, "file_name": "a/x.jpg", "width": 640, "height": 480},
        {"id": 1, "file_name": "a/y.png", "width": 100, "height": 50},
        {"id": 3, "file_name": "z.jpg", "width": 200, "height": 100},
    ]
    assert merged["annotations"] == [
        annotation(1, 0, 2, [10.5, 20.0, 100.0, 50.0], 5000.0, 0.9),
        annotation(2, 0, 1, [0.0, 0.0, 640.0, 480.0], 307200.0, 0.3),
        annotation(3, 3, 1, [1.0, 2.0, 2.5, 2.25], 5.625, 0.5),
    ]
    assert merged["failed"] == [
        {"id": 2, "file_name": "größe,1.jpg", "error": "broken", "detail": "cut short"}
    ]


def test_pycocotools_takes_it_as_data_set_and_as_results(out: Path) -> None:
    path = merge_detections(out, "coco")
    truth = COCO(str(path))
    results = truth.loadRes(json.loads(path.read_text())["annotations"])
    scores = COCOeval(truth, results, "bbox")
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1)  # detections against themselves


def test_csv_has_a_row_a_box_and_one_for_images_without(out: Path) -> None:
    path = merge_detections(out, "csv")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == ["a/x.jpg", "a/x.jpg", "a/y.png", "größe,1.jpg", "z.jpg"]
    assert rows[0] == {
        "image": "a/x.jpg", "id": "0", "width": "640", "height": "480", "error": "",
        "label": "1", "name": 'a "big", dog', "score": "0.9",
        "left": "10.5", "top": "20.0", "right": "110.5", "bottom": "70.0",
    }  # fmt: skip
    assert {key for key, value in rows[2].items() if value} == {"image", "id", "width", "height"}
    assert rows[3]["error"] == "broken"


def test_yolo_has_a_file_an_image_and_none_for_a_bad_one(out: Path) -> None:
    labels = merge_detections(out, "yolo")
    files = {str(path.relative_to(labels)): path.read_text() for path in labels.rglob("*.txt")}
    # centre (60.5, 45) and size (100, 50) of 640 x 480
    assert files == {
        "a/x.txt": "1 0.094531 0.093750 0.156250 0.104167 0.900000\n"
        "0 0.500000 0.500000 1.000000 1.000000 0.300000\n",
        "a/y.txt": "",
        "z.txt": "0 0.011250 0.031250 0.012500 0.022500 0.500000\n",
    }


def test_hdf5_has_everything_in_columns(out: Path) -> None:
    with h5py.File(merge_detections(out, "hdf5")) as file:
        assert file["box_ptr"][:].tolist() == [0, 2, 2, 2, 3]
        np.testing.assert_array_equal(
            file["boxes_xyxy"][:],
            np.array([[10.5, 20, 110.5, 70], [0, 0, 640, 480], [1, 2, 3.5, 4.25]], np.float32),
        )
        np.testing.assert_array_equal(file["scores"][:], np.array([0.9, 0.3, 0.5], np.float32))
        assert file["labels"][:].tolist() == [1, 0, 0]
        assert file["size"][:].tolist() == [[640, 480], [100, 50], [0, 0], [200, 100]]
        assert file["capped"][:].tolist() == [1, 0, 0, 0]
        codes = json.loads(file.attrs["error_codes"])
        assert [codes[number] for number in file["error"][:]] == ["", "", "broken", ""]
        raw, ends = bytes(file["names"][:]), file["name_ptr"][:].tolist()
        names = [raw[a:b].decode() for a, b in pairwise(ends)]
        assert names == [record.image for record in RECORDS]
        assert json.loads(bytes(file["class_names"][:])) == list(PLAN.class_names)
        assert file.attrs["fingerprint"].decode() == PLAN.digest


def test_hdf5_without_any_box(tmp_path: Path) -> None:
    plan = replace(PLAN, images=1)
    commit_plan(tmp_path, plan)
    (tmp_path / "parts").mkdir()
    Parts(tmp_path, plan).commit(0, [Found("y", 0, 4, 4, [], [], [], False)])
    with h5py.File(merge_detections(tmp_path, "hdf5")) as file:
        assert file["boxes_xyxy"].shape == (0, 4)
        assert file["box_ptr"][:].tolist() == [0, 0]


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", ["coco", "hdf5", "yolo", "csv"])
def test_merging_again_gives_the_same_bytes_and_leaves_nothing_else(out: Path, kind: str) -> None:
    first = content(merge_detections(out, kind))
    (out / "merged/labels/stale").mkdir(parents=True)
    assert content(merge_detections(out, kind)) == first
    assert not [path for path in (out / "merged").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["coco", "hdf5", "yolo", "csv"])
def test_a_damaged_part_leaves_the_merged_file_as_it_was(out: Path, kind: str) -> None:
    before = content(merge_detections(out, kind))
    part = out / "parts/part-00000001.jsonl"
    part.write_bytes(part.read_bytes().replace(b"0.5]", b"0.6]"))
    with pytest.raises(DataError, match="part-00000001"):
        merge_detections(out, kind)
    merged = {"coco": "detections.json", "hdf5": "detections.h5", "yolo": "labels", "csv": "detections.csv"}
    assert content(out / "merged" / merged[kind]) == before
    assert [path.name for path in (out / "merged").iterdir()] == [merged[kind]]


def test_unfinished_is_said(out: Path) -> None:
    (out / "parts/part-00000000.jsonl").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 2 parts, part-00000000\.jsonl first"):
        merge_detections(out, "coco")
    assert not (out / "merged").exists()


def test_unknown_format_names_the_nearest(out: Path) -> None:
    with pytest.raises(UsageError, match=r"coco, hdf5, yolo, csv.*did you mean 'coco'"):
        merge_detections(out, "cocos")


def output_of(directory: Path, names: list[str]) -> Path:
    """A finished output with these images and nothing on them."""
    directory.mkdir()
    plan = replace(PLAN, images=len(names), chunk=len(names))
    commit_plan(directory, plan)
    (directory / "parts").mkdir()
    records = [Found(name, number, 4, 4, [], [], [], False) for number, name in enumerate(names)]
    Parts(directory, plan).commit(0, records)
    return directory


def test_label_files_never_leave_their_directory(tmp_path: Path) -> None:
    merge_detections(output_of(tmp_path / "out", ["/abs/x.jpg", "../../up.jpg"]), "yolo")
    labels = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")}
    assert labels == {"out/merged/labels/abs/x.txt", "out/merged/labels/up.txt"}


def test_label_files_never_overwrite_each_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png and another image"):
        merge_detections(output_of(tmp_path / "out", ["a/x.jpg", "b/x.jpg", "a/x.png"]), "yolo")
