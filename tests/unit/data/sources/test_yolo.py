from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hvdyolo.data.sources.yolo import YoloSource
from hvdyolo.utils.errors import DataError, UsageError

NAMES = ["cat", "dog"]


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Make files by path and content, and a data.yaml; returns its folder."""

    def make(description: object, **contents: str) -> Path:
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        text = description if isinstance(description, str) else yaml.safe_dump(description)
        (tmp_path / "data.yaml").write_text(text)
        return tmp_path

    return make


def split_names(source: YoloSource) -> dict[str, list[str]]:
    return {split: [image.name for image in images] for split, images in source.splits.items()}


def rows(files: Callable[..., Path], text: str) -> list[tuple[float, ...]]:
    root = files({"train": "images", "names": NAMES}, **{"images/a.jpg": "", "labels/a.txt": text})
    source = YoloSource(root)
    boxes = source.boxes(source.splits["train"][0], 100, 100)
    return [(box.line, box.label, box.cx, box.cy, box.width, box.height) for box in boxes]


def test_rows_are_read_with_their_lines(files: Callable[..., Path]) -> None:
    assert rows(files, "0 0.5 0.25 0.1 0.2\n\n1 0.1 0.2 0.3 0.4  \n") == [
        (1, 0, 0.5, 0.25, 0.1, 0.2),
        (3, 1, 0.1, 0.2, 0.3, 0.4),
    ]


def test_a_byte_order_mark_and_windows_lines_do_no_harm(files: Callable[..., Path]) -> None:
    assert rows(files, "\ufeff0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.5 0.5\r\n")[1][0] == 2


def test_a_polygon_becomes_the_box_around_it(files: Callable[..., Path]) -> None:
    assert rows(files, "1 0.2 0.1 0.6 0.3 0.4 0.9\n") == [
        (1, 1, pytest.approx(0.4), 0.5, pytest.approx(0.4), 0.8)
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("2 0.5 0.5 0.1 0.1", r"class 2 is beyond the 2 names \(0 … 1\)"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is beyond"),
        ("0.5 0.5 0.5 0.1 0.1", "a class or a number that is none"),
        ("0 nan 0.5 0.1 0.1", "a class or a number that is none"),
        ("0 0.5 0.5 0.1 inf", "a class or a number that is none"),
        ("cat 0.5 0.5 0.1 0.1", "'cat 0.5 0.5 0.1 0.1' is not a row of numbers"),
        ("0 0.5 0.5 0.1", "has 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 8 numbers"),
        ("0 320 240 50 60", "fractions of the image in 0..1, and 320 looks like pixels"),
        ("0 0.5 0.5 1.6 0.5", "1.6 looks like pixels"),
        ("0 -0.6 0.5 0.1 0.5", "-0.6 looks like pixels"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named_with_file_and_line(
    files: Callable[..., Path], row: str, says: str
) -> None:
    with pytest.raises(DataError, match=rf"labels/a\.txt:2: .*{says}"):
        rows(files, f"0 0.5 0.5 0.5 0.5\n{row}\n")


def test_slightly_outside_is_left_to_the_check_of_boxes(files: Callable[..., Path]) -> None:
    assert len(rows(files, "0 -0.5 1.5 1.5 0.1\n")) == 1


def test_a_label_file_that_is_no_text_is_named(files: Callable[..., Path]) -> None:
    root = files({"train": "images", "names": NAMES}, **{"images/a.jpg": "", "labels/a.txt": ""})
    (root / "labels/a.txt").write_bytes(b"\xff\xfe\x00")
    source = YoloSource(root)
    with pytest.raises(DataError, match=r"labels/a\.txt is not text"):
        source.boxes(source.splits["train"][0], 1, 1)


def test_labels_lie_where_the_last_images_folder_has_its_twin(files: Callable[..., Path]) -> None:
    root = files(
        {"train": "images/train/images", "names": NAMES},
        **{"images/train/images/deep/a.jpg": "", "images/train/labels/deep/a.txt": "1 .5 .5 .5 .5\n"},
    )
    source = YoloSource(root)
    (image,) = source.splits["train"]
    assert image.annotation == root / "images/train/labels/deep/a.txt"
    assert image.name == "deep/a.jpg"
    assert source.boxes(image, 1, 1)[0].label == 1


def test_an_image_without_labels_is_background(files: Callable[..., Path]) -> None:
    source = YoloSource(files({"train": "images", "names": NAMES}, **{"images/a.jpg": ""}))
    (image,) = source.splits["train"]
    assert image.annotation is None
    assert source.boxes(image, 1, 1) == []


@pytest.mark.parametrize(
    ("description", "image"),
    [
        ({"train": "images/train"}, "images/train/a.jpg"),
        ({"path": ".", "train": "images/train"}, "images/train/a.jpg"),
        ({"path": "sub", "train": "images/train"}, "sub/images/train/a.jpg"),
        ({"path": "/content/not/here", "train": "images/train"}, "images/train/a.jpg"),
        ({"train": "../train/images"}, "train/images/a.jpg"),
        ({"train": "images/train/"}, "images/train/a.jpg"),
        ({"train": ["images/train"]}, "images/train/a.jpg"),
        ({"path": None, "train": "images/train", "val": None, "test": ""}, "images/train/a.jpg"),
    ],
)
def test_the_usual_ways_to_write_paths(
    files: Callable[..., Path], description: dict[str, object], image: str
) -> None:
    description = {key: value for key, value in description.items() if value != ""}
    source = YoloSource(files({**description, "names": NAMES}, **{image: ""}))
    assert split_names(source) == {"train": ["a.jpg"]}


def test_all_splits_are_found_and_other_keys_do_no_harm(files: Callable[..., Path]) -> None:
    description = {
        "train": "a/images",
        "val": "b/images",
        "test": "c/images",
        "nc": 2,
        "names": NAMES,
        "roboflow": {},
    }
    source = YoloSource(files(description, **{f"{letter}/images/{letter}.png": "" for letter in "abc"}))
    assert split_names(source) == {"train": ["a.png"], "val": ["b.png"], "test": ["c.png"]}


def test_the_file_itself_may_be_given(files: Callable[..., Path]) -> None:
    root = files({"train": "images", "names": NAMES}, **{"images/a.jpg": ""})
    assert split_names(YoloSource(root / "data.yaml")) == {"train": ["a.jpg"]}


def test_equal_names_in_two_folders_are_two_images(files: Callable[..., Path]) -> None:
    source = YoloSource(
        files(
            {"train": ["a/images", "b/images"], "names": NAMES},
            **{"a/images/x.jpg": "", "b/images/x.jpg": ""},
        )
    )
    assert split_names(source) == {"train": ["a/images/x.jpg", "b/images/x.jpg"]}


def test_a_list_of_files_is_relative_to_the_list(files: Callable[..., Path], tmp_path: Path) -> None:
    source = YoloSource(
        files(
            {"train": "lists/train.txt", "names": NAMES},
            **{
                "lists/train.txt": f"./../images/b.jpg\n\n../images/a.jpg\n{tmp_path}/images/c.jpg\n",
                **{f"images/{letter}.jpg": "" for letter in "abcd"},
                "labels/a.txt": "0 .5 .5 .5 .5\n",
            },
        )
    )
    assert split_names(source) == {"train": ["a.jpg", "b.jpg", "c.jpg"]}
    assert source.splits["train"][0].annotation is not None


def test_a_list_that_names_a_missing_image_is_told_with_its_line(files: Callable[..., Path]) -> None:
    root = files({"train": "train.txt", "names": NAMES}, **{"train.txt": "a.jpg\nb.jpg\n", "a.jpg": ""})
    with pytest.raises(DataError, match=r"train\.txt:2: lists b\.jpg"):
        YoloSource(root)


def test_hidden_files_and_other_files_are_no_images(files: Callable[..., Path]) -> None:
    names = ["images/a.JPG", "images/._a.jpg", "images/.trash/b.jpg", "images/notes.txt", "images/c.npy"]
    source = YoloSource(files({"train": "images", "names": NAMES}, **dict.fromkeys(names, "")))
    assert split_names(source) == {"train": ["a.JPG"]}


def test_links_are_followed_but_not_in_circles(files: Callable[..., Path], tmp_path: Path) -> None:
    root = files({"train": "images", "names": NAMES}, **{"store/b.jpg": "", "images/a.jpg": ""})
    (root / "images/linked").symlink_to(tmp_path / "store")
    (root / "images/circle").symlink_to(tmp_path / "images")
    assert split_names(YoloSource(root)) == {"train": ["a.jpg", "linked/b.jpg"]}


def test_names_may_be_numbered(files: Callable[..., Path]) -> None:
    names = dict(enumerate("abcdefghijkl"))
    source = YoloSource(files({"train": "images", "names": names}, **{"images/a.jpg": ""}))
    assert source.names == tuple("abcdefghijkl")


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("train: [", "is not valid YAML"),
        ("- a\n", "must hold keys"),
        ({"train": "images"}, "no list 'names'"),
        ({"train": "images", "names": []}, "no list 'names'"),
        ({"train": "images", "names": {1: "a", 2: "b"}}, "0, 1, 2 and so on"),
        ({"train": "images", "nc": 3, "names": NAMES}, "nc is 3 and there are 2 names"),
        ({"train": "images", "names": ["a", "b", "a"]}, "the class name 'a' twice"),
        ({"train": "images", "names": ["a", ""]}, "an empty class name"),
        ({"names": NAMES}, "names no images under train, val or test"),
        (
            {"train": "imagse", "names": NAMES},
            r"'train: imagse' does not exist; it was looked for at .*imagse",
        ),
        ({"train": {"a": 1}, "names": NAMES}, "'train' must be a folder"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_data_yaml_that_does_not_fit_is_wrong_usage(
    files: Callable[..., Path], description: object, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        YoloSource(files(description, **{"images/a.jpg": ""}))


def test_no_data_yaml_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no .*data\.yaml"):
        YoloSource(tmp_path)


def test_an_empty_split_is_refused(files: Callable[..., Path]) -> None:
    root = files(
        {"train": "images", "val": "none", "names": NAMES}, **{"images/a.jpg": "", "none/readme.txt": ""}
    )
    with pytest.raises(DataError, match=r"the split 'val' is empty: none holds no images"):
        YoloSource(root)


def test_orphans_and_images_in_two_splits_are_told(files: Callable[..., Path]) -> None:
    source = YoloSource(
        files(
            {"train": "images", "val": ["images/a.jpg.txt"], "names": NAMES},
            **{
                "images/a.jpg": "",
                "images/a.jpg.txt": "a.jpg\n",
                "labels/a.txt": "0 .5 .5 .5 .5\n",
                "labels/aa.txt": "0 .5 .5 .5 .5\n",
                "labels/classes.txt": "cat\ndog\n",
            },
        )
    )
    told = [(finding.kind, Path(finding.file).name) for finding in source.findings]
    assert told == [("repeated", "a.jpg"), ("orphan", "aa.txt")]
