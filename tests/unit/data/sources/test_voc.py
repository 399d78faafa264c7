import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from hvdyolo.data.sources.source import UnreadableLabelsError
from hvdyolo.data.sources.voc import VocSource, read_annotation
from hvdyolo.utils.errors import DataError, StorageError, UsageError

OBJECT = """  <object>
    <name>{name}</name><difficult>{difficult}</difficult><truncated>{truncated}</truncated>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
"""


def annotation(*objects: str, size: str = "<size><width>200</width><height>100</height></size>") -> str:
    return f"<annotation>\n{size}\n{''.join(objects)}</annotation>\n"


def thing(
    name: str = "cat", box: tuple[object, ...] = (10, 20, 50, 60), difficult: int = 0, truncated: int = 0
) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult, truncated=truncated)


@pytest.fixture
def voc(tmp_path: Path) -> Callable[..., Path]:
    """Make a VOC folder of annotation texts by stem and stems by list."""

    def make(annotations: dict[str, str], lists: dict[str, str]) -> Path:
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True)
        for stem, text in annotations.items():
            (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
            (tmp_path / "JPEGImages" / f"{stem}.jpg").write_bytes(b"")
        for name, text in lists.items():
            (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
        return tmp_path

    return make


def test_boxes_are_corners_over_size_with_their_lines(voc: Callable[..., Path]) -> None:
    root = voc({"a": annotation(thing(), thing("dog", (0, 0, 200, 100), 1, 1))}, {"train": "a\n"})
    source = VocSource(root)
    assert source.names == ("cat", "dog")
    (image,) = source.splits["train"]
    assert (image.name, image.path) == ("a.jpg", root / "JPEGImages" / "a.jpg")
    assert source.stated_size(image) == (200, 100)
    first, second = source.boxes(image, 200, 100)
    # (10 + 50) / 2 / 200, (20 + 60) / 2 / 100, 40 / 200, 40 / 100: nothing is subtracted.
    assert (first.label, first.cx, first.cy, first.width, first.height) == (0, 0.15, 0.4, 0.2, 0.4)
    assert (second.label, second.cx, second.cy, second.width, second.height) == (1, 0.5, 0.5, 1, 1)
    assert (first.flags, second.flags) == (0, 2 | 4)
    assert (first.line, second.line) == (3, 8)


def test_train_val_and_test_are_taken_and_trainval_is_not(voc: Callable[..., Path]) -> None:
    stems = {stem: annotation(thing()) for stem in "abcd"}
    lists = {
        "train": "b\na\n",
        "val": "c\n",
        "test": "d\n",
        "trainval": "a\nb\nc\n",
        "cat_train": "a 1\nb -1\n",
    }
    source = VocSource(voc(stems, lists))
    names = {split: [image.name for image in images] for split, images in source.splits.items()}
    assert names == {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"], "test": ["d.jpg"]}
    assert source.findings == []


def test_trainval_serves_where_there_is_neither_train_nor_val(voc: Callable[..., Path]) -> None:
    source = VocSource(voc({"a": annotation(thing())}, {"trainval": "a\n"}))
    assert list(source.splits) == ["train"]


def test_given_names_decide_the_numbers(voc: Callable[..., Path]) -> None:
    root = voc({"a": annotation(thing("cat"))}, {"train": "a\n"})
    source = VocSource(root, ["dog", "cat"])
    assert source.boxes(source.splits["train"][0], 200, 100)[0].label == 1


def test_an_unknown_class_is_named_with_file_and_line(voc: Callable[..., Path]) -> None:
    root = voc({"a": annotation(thing("cat"), thing("cow"))}, {"train": "a\n"})
    source = VocSource(root, ["cat"])
    cat, cow = source.boxes(source.splits["train"][0], 200, 100)
    assert cat.label == 0
    says = f"{root}/Annotations/a.xml:8: unknown class: class 'cow' is not among the names cat"
    assert str(cow) == says


@pytest.mark.parametrize("xmin", ["", "a", "nan", "<x>1</x>", None])
def test_an_object_without_a_box_is_named_with_its_line_and_costs_no_other(
    voc: Callable[..., Path], xmin: str | None
) -> None:
    bad = thing(box=(xmin, 1, 2, 3))
    text = annotation(bad.replace("<xmin>None</xmin>", ""), thing())
    root = voc({"a": text}, {"train": "a\n"})
    source = VocSource(root)
    row, box = source.boxes(source.splits["train"][0], 200, 100)
    assert str(row).startswith(f"{root}/Annotations/a.xml:3: unreadable row: the object has no four numbers")
    assert (box.line, box.cx) == (8, 0.15)


def test_an_annotation_may_have_no_objects(voc: Callable[..., Path]) -> None:
    source = VocSource(voc({"a": annotation(), "b": annotation(thing())}, {"train": "a\nb\n"}))
    assert source.boxes(source.splits["train"][0], 200, 100) == []


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size>x</size>"])
def test_a_size_that_tells_nothing_is_none(voc: Callable[..., Path], size: str) -> None:
    source = VocSource(voc({"a": annotation(thing(), size=size)}, {"train": "a\n"}))
    assert source.stated_size(source.splits["train"][0]) is None


@pytest.mark.parametrize("missing", ["JPEGImages", "Annotations", "ImageSets/Main"])
def test_a_missing_folder_is_named(voc: Callable[..., Path], missing: str) -> None:
    root = voc({}, {})
    (root / missing).rmdir()
    with pytest.raises(UsageError, match=f"no folder {missing}"):
        VocSource(root)


def test_without_lists_there_is_nothing_to_pack(voc: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"none of train\.txt"):
        VocSource(voc({}, {}))


def test_listed_images_that_do_not_exist_are_named_with_their_lines(voc: Callable[..., Path]) -> None:
    root = voc({"a": annotation(thing())}, {"val": "a\nb\n\nc 1\nd\ne\n"})
    says = (
        r"val\.txt:2: lists b \(line 2\), c \(line 4\), d \(line 5\) and 1 more, and JPEGImages has no such"
    )
    with pytest.raises(DataError, match=says):
        VocSource(root)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_listed_image_without_annotation_is_left_out_and_told(
    voc: Callable[..., Path], dangling: bool
) -> None:
    root = voc({stem: annotation(thing()) for stem in "abcd"}, {"train": "a\nb\n", "val": "c\nd\n"})
    (root / "Annotations/b.xml").unlink()
    if dangling:
        (root / "Annotations/b.xml").symlink_to(root / "nowhere.xml")
    source = VocSource(root)
    names = {split: [image.name for image in images] for split, images in source.splits.items()}
    assert names == {"train": ["a.jpg"], "val": ["c.jpg", "d.jpg"]}
    (finding,) = source.lost["train"]
    assert str(finding) == f"{root}/JPEGImages/b.jpg: missing labels: no b.xml"
    assert source.lost["val"] == source.findings == []


def test_annotations_of_other_images_are_refused(voc: Callable[..., Path]) -> None:
    root = voc({stem: annotation(thing()) for stem in "abcdefg"}, {"train": "\n".join("abcdefg")})
    for stem in "abdg":
        (root / f"Annotations/{stem}.xml").unlink()
    with pytest.raises(
        DataError, match=r"lacks 4 of the 7 images that .*train\.txt lists \(a, b, d and 1 more\)"
    ):
        VocSource(root)


def test_orphans_and_images_of_one_name_are_told(voc: Callable[..., Path]) -> None:
    root = voc({stem: annotation(thing()) for stem in "abc"}, {"train": "a\nb\n"})  # c is in no list
    (root / "JPEGImages/a.png").write_bytes(b"")
    (root / "Annotations/bb.xml").write_text(annotation())
    (root / "Annotations/._a.xml").write_bytes(b"\0")
    source = VocSource(root)
    assert [image.name for image in source.splits["train"]] == ["a.jpg", "b.jpg"]
    assert [str(finding) for finding in source.findings] == [
        f"{root}/JPEGImages/a.png: ambiguous: the labels of that name go to a.jpg",
        f"{root}/Annotations/bb.xml: orphan: no image of that name in {root}/JPEGImages",
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_name(voc: Callable[..., Path]) -> None:
    source = VocSource(voc({"a": annotation(thing())}, {"train": "\ufeffa\r\n"}))
    assert [image.name for image in source.splits["train"]] == ["a.jpg"]


def test_names_are_found_in_the_annotations_that_can_be_read(voc: Callable[..., Path]) -> None:
    root = voc({"a": annotation(thing("cat")), "b": "<annotation>"}, {"train": "a\nb\n"})
    source = VocSource(root)
    assert source.names == ("cat",)
    broken = source.splits["train"][1]
    for ask in (lambda: source.stated_size(broken), lambda: source.boxes(broken, 200, 100)):
        with pytest.raises(UnreadableLabelsError) as caught:
            ask()
        assert (caught.value.finding.kind, caught.value.finding.line) == ("unreadable labels", 1)


def test_where_no_annotation_can_be_read_the_first_are_named(voc: Callable[..., Path]) -> None:
    root = voc({"a": "", "b": "<annotation>"}, {"train": "a\nb\n"})
    with pytest.raises(DataError, match=r"No annotation in .* can be read: .*a\.xml:1: .*, .*b\.xml:1: "):
        VocSource(root)


def test_a_file_system_that_fails_costs_no_labels(
    voc: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = VocSource(voc({"a": annotation(thing())}, {"train": "a\n"}), ["cat"])

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StorageError, match=r"cannot read .*a\.xml: Input/output error"):
        source.boxes(source.splits["train"][0], 200, 100)


def test_images_listed_twice_or_in_two_splits_are_told_and_packed_once(voc: Callable[..., Path]) -> None:
    source = VocSource(
        voc({stem: annotation(thing()) for stem in "ab"}, {"train": "a\nb\na\n", "val": "b\n"})
    )
    assert [len(images) for images in source.splits.values()] == [2, 1]
    told = [(finding.kind, finding.line, finding.detail) for finding in source.findings]
    assert told == [("repeated", 3, "a is listed before"), ("repeated", 0, "in train and in val")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotation><object></annotation>", r"x\.xml:1: unreadable labels: is not valid XML"),
        ("", "is not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares XML entities"),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
            "declares XML entities",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML|cannot be read"),
    ],
)
def test_broken_and_hostile_xml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(UnreadableLabelsError, match=says):
        read_annotation(tmp_path / "x.xml")


def test_bccd_has_its_known_boxes(bccd: Path) -> None:
    source = VocSource(bccd)
    assert source.names == ("Platelets", "RBC", "WBC")
    assert {split: len(images) for split, images in source.splits.items()} == {
        "train": 205, "val": 87, "test": 72
    }  # fmt: skip
    boxes = [
        box for images in source.splits.values() for image in images for box in source.boxes(image, 640, 480)
    ]
    assert len(boxes) == 4888
    assert sum(box.width <= 0 or box.height <= 0 for box in boxes) == 2
