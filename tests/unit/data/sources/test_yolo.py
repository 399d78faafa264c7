import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hvdyolo.data.sources.source import UnreadableLabelsError
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
        ("0 320 240 50 60", "320 looks like pixels, and labels are fractions of the image in 0..1"),
        ("0 0.5 0.5 1.6 0.5", "1.6 looks like pixels"),
        ("0 -0.6 0.5 0.1 0.5", "-0.6 looks like pixels"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named_with_file_and_line_and_costs_no_other(
    files: Callable[..., Path], row: str, says: str
) -> None:
    text = f"0 0.5 0.5 0.5 0.5\n{row}\n1 0.5 0.5 0.5 0.5\n"
    root = files({"train": "images", "names": NAMES}, **{"images/a.jpg": "", "labels/a.txt": text})
    source = YoloSource(root)
    first, bad, last = source.boxes(source.splits["train"][0], 100, 100)
    kind = "unknown class" if "beyond" in says else "unreadable row"
    assert re.match(rf"{root}/labels/a\.txt:2: {kind}: .*{says}", str(bad))
    assert [(box.line, box.label) for box in (first, last)] == [(1, 0), (3, 1)]


def test_slightly_outside_is_left_to_the_check_of_boxes(files: Callable[..., Path]) -> None:
    assert len(rows(files, "0 -0.5 1.5 1.5 0.1\n")) == 1


def test_a_label_file_that_is_no_text_is_named(files: Callable[..., Path]) -> None:
    root = files({"train": "images", "names": NAMES}, **{"images/a.jpg": "", "labels/a.txt": ""})
    (root / "labels/a.txt").write_bytes(b"\xff\xfe\x00")
    source = YoloSource(root)
    with pytest.raises(UnreadableLabelsError, match=r"labels/a\.txt: unreadable labels: is not text"):
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


def test_a_list_that_names_missing_images_is_told_with_their_lines(files: Callable[..., Path]) -> None:
    text = "a.jpg\nb.jpg\n\nc.jpg\n"
    root = files({"train": "train.txt", "names": NAMES}, **{"train.txt": text, "a.jpg": ""})
    with pytest.raises(
        DataError, match=r"train\.txt:2: lists b\.jpg \(line 2\), c\.jpg \(line 4\), and there"
    ):
        YoloSource(root)


def test_byte_order_marks_do_no_harm(files: Callable[..., Path]) -> None:
    text = "\ufefftrain: train.txt\nnames: [cat, dog]\n"
    root = files(text, **{"train.txt": "\ufeffa.jpg\r\n", "a.jpg": ""})
    assert split_names(YoloSource(root)) == {"train": ["a.jpg"]}


@pytest.mark.parametrize(
    ("place", "image", "label"),
    [
        # Above the dataset names mean nothing.
        ("labels/ds", "train/a.jpg", "train/a.txt"),
        ("images/ds", "train/a.jpg", "train/a.txt"),
        ("images", "train/a.jpg", "train/a.txt"),
        ("images/labels/images/ds", "images/train/a.jpg", "labels/train/a.txt"),
        ("labels/ds", "labels/images/a.jpg", "labels/labels/a.txt"),
        ("images/ds", "train/labels/a.jpg", "train/labels/a.txt"),
    ],
)
def test_a_dataset_may_lie_anywhere(
    files: Callable[..., Path], tmp_path: Path, place: str, image: str, label: str
) -> None:
    twin = place.replace("images", "labels")
    names = [f"{place}/{image}", f"{place}/{label}", f"{twin}/{label}"]
    files("", **dict.fromkeys(names, "0 .5 .5 .5 .5\n"))
    home = tmp_path / place
    description = {"train": str(Path(image).parent), "names": NAMES}
    (home / "data.yaml").write_text(yaml.safe_dump(description))
    source = YoloSource(home)
    assert [found.annotation for found in source.splits["train"]] == [home / label]
    assert source.findings == []


@pytest.mark.parametrize(
    ("description", "image", "label"),
    [
        # A path outside is the dataset's root, and may be one of images itself.
        ({"path": "../images/ds", "train": "train"}, "images/ds/train/a.jpg", "images/ds/train/a.txt"),
        ({"path": "../images", "train": "train"}, "images/train/a.jpg", "labels/train/a.txt"),
        ({"train": "../ds/images"}, "ds/images/a.jpg", "ds/labels/a.txt"),
        ({"path": "images", "train": "train"}, "home/images/train/a.jpg", "home/labels/train/a.txt"),
    ],
)
def test_images_need_not_lie_below_the_data_yaml(
    files: Callable[..., Path], tmp_path: Path, description: dict[str, object], image: str, label: str
) -> None:
    files("", **{image: "", label: "0 .5 .5 .5 .5\n", "home/x": ""})
    (tmp_path / "home/data.yaml").write_text(yaml.safe_dump({**description, "names": NAMES}))
    source = YoloSource(tmp_path / "home")
    assert [found.annotation for found in source.splits["train"]] == [tmp_path / label]
    assert source.findings == []


def test_hidden_files_and_other_files_are_no_images(files: Callable[..., Path]) -> None:
    names = ["images/a.JPG", "images/._a.jpg", "images/.trash/b.jpg", "images/notes.txt", "images/c.npy"]
    source = YoloSource(files({"train": "images", "names": NAMES}, **dict.fromkeys(names, "")))
    assert split_names(source) == {"train": ["a.JPG"]}


def test_links_are_followed_but_not_in_circles(files: Callable[..., Path], tmp_path: Path) -> None:
    root = files({"train": "images", "names": NAMES}, **{"store/b.jpg": "", "images/a.jpg": ""})
    (root / "images/linked").symlink_to(tmp_path / "store")
    (root / "images/circle").symlink_to(tmp_path / "images")
    assert split_names(YoloSource(root)) == {"train": ["a.jpg", "linked/b.jpg"]}


def test_the_order_of_the_file_system_decides_nothing(
    files: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two links to one folder the first by name is followed."""
    root = files({"train": "images", "names": NAMES}, **{"store/b.jpg": "", "images/c.jpg": ""})
    for name in ("one", "two", "a"):
        (root / "images" / name).symlink_to(tmp_path / "store")
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self._entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __iter__(self) -> "Reversed":
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self._entries)

        def __enter__(self) -> "Reversed":
            return self

        def __exit__(self, *_: object) -> None: ...

        close = __exit__

    monkeypatch.setattr(os, "scandir", Reversed)
    assert split_names(YoloSource(root)) == {"train": ["a/b.jpg", "c.jpg"]}


def test_names_may_be_numbered(files: Callable[..., Path]) -> None:
    names = dict(enumerate("abcdefghijkl"))
    source = YoloSource(files({"train": "images", "names": names}, **{"images/a.jpg": ""}))
    assert source.names == tuple("abcdefghijkl")


@pytest.mark.parametrize(
    ("description", "says"),
    [
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
        (
            {"train": "images", "names": ["x" * 40_000]},
            "the 1 class names take 40,004 bytes, and a shard holds",
        ),
    ],
)
def test_a_data_yaml_that_does_not_fit_is_wrong_usage(
    files: Callable[..., Path], description: object, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        YoloSource(files(description, **{"images/a.jpg": ""}))


@pytest.mark.parametrize(
    "text",
    [
        "train: [",
        "!!python/object/apply:os.system ['true']",
        "train: images\nnames: [cat, dog]\ncreated: 2023-02-30\n",
        "train: images\nnames: [cat, dog]\nversion: !!bool maybe\n",
        "[" * 500,
        "a: \x00",
    ],
)
def test_a_data_yaml_that_cannot_be_read_is_told(files: Callable[..., Path], text: str) -> None:
    with pytest.raises(DataError, match=r"data\.yaml is not valid YAML: ") as caught:
        YoloSource(files(text, **{"images/a.jpg": ""}))
    assert "\n" not in str(caught.value)


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


def test_orphans_are_looked_for_wherever_the_labels_of_a_split_would_be(
    files: Callable[..., Path], tmp_path: Path
) -> None:
    row = "0 .5 .5 .5 .5\n"
    source = YoloSource(
        files(
            {"train": ["images/train", "beside"], "val": "more/images", "names": NAMES},
            **{
                "images/train/a.jpg": "",  # none of this folder's labels is used
                "labels/train/b.txt": row,
                "labels/train/._a.txt": "",
                "labels/train/gone/c.txt": row,  # all images of its folder are lost
                "labels/test/d.txt": row,  # of no split
                "beside/e.jpg": "",
                "beside/e.txt": row,
                "beside/f.txt": row,
                "beside/readme.txt": "made in 2023\n",
                "more/images/deep/g.jpg": "",
                "more/labels/deep/g.txt": row,
                "more/labels/deep/i.txt": row,
                "more/labels/h.txt": "",
            },
        )
    )
    told = [str(Path(finding.file).relative_to(tmp_path)) for finding in source.findings]
    assert told == [
        "beside/f.txt",
        "labels/train/b.txt",
        "labels/train/gone/c.txt",
        "more/labels/h.txt",
        "more/labels/deep/i.txt",
    ]
    assert {finding.kind for finding in source.findings} == {"orphan"}
