import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdyolo.data.sources.coco import CocoSource
from hvdyolo.utils.errors import DataError, UsageError

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "width": 200, "height": 100},
        {"id": 3, "file_name": "a.jpg", "width": 100, "height": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 20, 40, 60], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 13, "bbox": [1, 2, 3, 4]},
    ],
    "categories": CATEGORIES,
}


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    """Make a COCO folder of annotation files by name."""

    def make(folder: str = "train2017", **contents: Any) -> Path:
        (tmp_path / "annotations").mkdir()
        (tmp_path / folder).mkdir(parents=True)
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            for image in ["a.jpg", "b.jpg"] if isinstance(content, dict) else []:
                (tmp_path / folder / image).write_bytes(b"")
            (tmp_path / "annotations" / f"{name}.json").write_text(text)
        return tmp_path

    return make


def test_categories_with_gaps_become_numbers_without(coco: Callable[..., Path]) -> None:
    root = coco(instances_train2017=CONTENT)
    source = CocoSource(root)
    assert source.names == ("person", "stop sign", "toothbrush")
    first, second = source.splits["train"]
    assert (first.name, second.name) == ("a.jpg", "b.jpg")
    assert second.path == root / "train2017" / "b.jpg"
    assert source.stated_size(second) == (200, 100)
    box, crowd = source.boxes(second, 200, 100)
    # x 10, y 20, w 40, h 60 of 200 x 100.
    assert (box.label, box.cx, box.cy, box.width, box.height) == (2, 0.15, 0.5, 0.2, 0.6)
    assert (crowd.label, crowd.flags, box.flags) == (0, 1, 0)
    assert box.note == "annotation 1 of b.jpg"
    assert [other.label for other in source.boxes(first, 100, 100)] == [1]


def test_the_labels_of_some_images_are_sent_without_those_of_others(coco: Callable[..., Path]) -> None:
    source = CocoSource(coco(instances_train2017=CONTENT))
    first, second = source.splits["train"]
    sent = pickle.dumps(source.labels_of([second]))
    labels = pickle.loads(sent)
    assert labels.boxes(second, 200, 100) == source.boxes(second, 200, 100)
    assert labels.stated_size(second) == (200, 100)
    assert b"b.jpg" in sent
    assert b"a.jpg" not in sent
    assert len(source.boxes(first, 100, 100)) == 1  # the source itself has all of them still


def test_given_names_choose_categories(coco: Callable[..., Path]) -> None:
    source = CocoSource(coco(instances_train2017=CONTENT), ["toothbrush", "person"])
    first, second = source.splits["train"]
    assert [box.label for box in source.boxes(second, 200, 100)] == [0, 1]
    assert source.boxes(first, 100, 100) == []


def test_a_name_that_is_no_category_is_wrong_usage(coco: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no category 'dog'; it has person, stop sign"):
        CocoSource(coco(instances_train2017=CONTENT), ["dog"])


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "train", "images/train", "images"])
def test_images_lie_in_one_of_the_usual_folders(coco: Callable[..., Path], folder: str) -> None:
    root = coco(folder, instances_train2017=CONTENT)
    assert CocoSource(root).splits["train"][0].path == root / folder / "a.jpg"


def test_no_folder_of_images_is_wrong_usage(coco: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"needs its images in .*train2017"):
        CocoSource(coco("pictures", instances_train2017=CONTENT))


def test_two_files_for_a_split_are_ambiguous(coco: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"several files for 'train' \(instances_train2014\.json, "):
        CocoSource(coco(instances_train2014=CONTENT, instances_train2017=CONTENT))


def test_no_annotations_are_wrong_usage(coco: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no instances_train"):
        CocoSource(coco())


def changed(key: str, row: int, **values: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(CONTENT))
    content[key][row].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a COCO instances file"),
        ("[]", "no list 'images'"),
        ("[" * 100_000, "not a COCO instances file"),
        ({**CONTENT, "annotations": {}}, "no list 'annotations'"),
        ({**CONTENT, "images": [{"id": 3}]}, "row 0 of 'images' has no valid 'file_name'"),
        ({**CONTENT, "images": [3]}, "row 0 of 'images' is no object"),
        ({**CONTENT, "categories": [{"id": "x", "name": "y"}]}, "row 0 of 'categories' has no valid 'id'"),
        (changed("images", 1, file_name="b.jpg"), r"lists the image b\.jpg twice"),
        (changed("images", 1, file_name="./b.jpg"), r"lists the image b\.jpg twice"),
        (changed("images", 1, id=7), r"gives b\.jpg and a\.jpg the same id 7"),
        (changed("images", 1, file_name="a\0.jpg"), r"the image 'a\\x00\.jpg', which is no name"),
        (changed("images", 1, file_name="\ud800.jpg"), r"the image '\\ud800\.jpg', which is no name"),
    ],
)
def test_a_damaged_file_is_told(coco: Callable[..., Path], content: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"instances_train2017\.json.*{says}"):
        CocoSource(coco(instances_train2017=content))


def test_images_that_do_not_exist_are_named(coco: Callable[..., Path]) -> None:
    images = [
        {"id": number, "file_name": name}
        for number, name in enumerate(["c.jpg", "a.jpg", "x/d.jpg", "a.jpg/e.jpg", "f.jpg", "x/b.jpg"])
    ]
    root = coco(instances_train2017={**CONTENT, "images": images})
    (root / "train2017/x").mkdir()
    (root / "train2017/x/b.jpg").write_bytes(b"")
    says = r"lists c\.jpg, x/d\.jpg, a\.jpg/e\.jpg and 1 more, and .*train2017 has no such image"
    with pytest.raises(DataError, match=says):
        CocoSource(root)


def test_faults_of_several_images_are_told_at_once(coco: Callable[..., Path]) -> None:
    images = [{"id": 1, "file_name": name} for name in ("a.jpg", "b.jpg", "b.jpg")]
    with pytest.raises(
        DataError, match=r"gives a\.jpg and b\.jpg the same id 1, lists the image b\.jpg twice;"
    ):
        CocoSource(coco(instances_train2017={**CONTENT, "images": images}))


def test_names_of_images_are_spelt_one_way(coco: Callable[..., Path]) -> None:
    root = coco(instances_train2017=changed("images", 1, file_name="./x/..//a.jpg"))
    image = CocoSource(root).splits["train"][0]
    assert (image.name, image.path) == ("a.jpg", root / "train2017/a.jpg")


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ({"bbox": None}, "unreadable row", "bbox None is not four numbers"),
        ({"bbox": [1, 2, 3]}, "unreadable row", "bbox [1, 2, 3] is not four numbers"),
        ({"bbox": [1, 2, 3, "x"]}, "unreadable row", "bbox [1, 2, 3, 'x'] is not four numbers"),
        ({"bbox": "1234"}, "unreadable row", "bbox '1234' is not four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "unreadable row", "bbox [1, 2, 3, nan] is not four numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "unreadable row", None),
        ({"category_id": 2}, "unknown class", "category 2 is not listed"),
        ({"category_id": [1]}, "unknown class", "category [1] is not listed"),
        ({"category_id": None}, "unknown class", "category None is not listed"),
    ],
)
def test_a_bad_annotation_is_named_and_costs_no_other(
    coco: Callable[..., Path], values: dict[str, Any], kind: str, says: str | None
) -> None:
    source = CocoSource(coco(instances_train2017=changed("annotations", 0, **values)))
    image = source.splits["train"][1]
    bad, crowd = source.boxes(image, 200, 100)
    assert (bad.kind, Path(bad.file).name, bad.line) == (kind, "instances_train2017.json", 0)
    assert bad.detail.startswith("annotation 1 of b.jpg: ")
    assert says is None or bad.detail == f"annotation 1 of b.jpg: {says}"
    assert (crowd.label, crowd.flags) == (0, 1)
    assert source.lost == {"train": []}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": 4, "image_id": 99}, "annotation 4 is of image 99, which is not listed"),
        ({"id": 4, "image_id": [7]}, "annotation 4 is of image [7], which is not listed"),
        ({"id": 4}, "annotation 4 is of image None, which is not listed"),
        ("x", "row 3 of 'annotations' is no object"),
    ],
)
def test_an_annotation_of_no_image_is_named_and_costs_no_other(
    coco: Callable[..., Path], row: Any, says: str
) -> None:
    source = CocoSource(coco(instances_train2017={**CONTENT, "annotations": [*CONTENT["annotations"], row]}))
    (finding,) = source.lost["train"]
    assert (finding.kind, finding.detail) == ("unreadable row", says)
    assert [len(source.boxes(image, 200, 100)) for image in source.splits["train"]] == [1, 2]


def test_categories_that_are_not_wanted_are_no_fault(coco: Callable[..., Path]) -> None:
    source = CocoSource(coco(instances_train2017=changed("annotations", 0, category_id=2)), ["person"])
    first, second = source.splits["train"]
    assert source.boxes(first, 100, 100) == []  # a stop sign
    bad, person = source.boxes(second, 200, 100)
    assert (bad.kind, person.label) == ("unknown class", 0)


def test_splits_that_disagree_about_a_category_are_refused(coco: Callable[..., Path]) -> None:
    other = {**CONTENT, "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    with pytest.raises(DataError, match="category 1 is 'dog' here and 'person' in another split"):
        CocoSource(coco(folder="images", instances_train=CONTENT, instances_val=other))


def test_two_categories_of_one_name_are_refused(coco: Callable[..., Path]) -> None:
    content = {**CONTENT, "categories": [*CATEGORIES, {"id": 2, "name": "person"}]}
    with pytest.raises(UsageError, match="'person' twice"):
        CocoSource(coco(instances_train2017=content))
