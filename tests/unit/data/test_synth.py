import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hvdyolo.data.sources.yolo import YoloSource
from hvdyolo.data.synth import CLASS_NAMES, SIZE, _place_shapes, draw_picture, main, write_dataset
from hvdyolo.utils.errors import MismatchError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_words_draw_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["--out", str(tmp_path / name), "--images", "5", "--seed", "3"]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    main(["--out", str(tmp_path / "c"), "--images", "5", "--seed", "4"])
    assert not set(contents(tmp_path / "a").values()) & {
        content for name, content in contents(tmp_path / "c").items() if name.endswith("jpg")
    }


def test_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", images=3, classes=4, seed=0)
    write_dataset(tmp_path / "b", images=6, classes=4, seed=0)
    assert contents(tmp_path / "a").items() <= contents(tmp_path / "b").items()


def test_no_picture_is_in_both_splits(drawn: Path) -> None:
    train, val = (contents(drawn / "images" / split) for split in ("train", "val"))
    assert (len(train), len(val)) == (40, 32)
    assert not set(train.values()) & set(val.values())
    means = [
        np.asarray(Image.open(path).resize((4, 4)), dtype=float)
        for split in ("train", "val")
        for path in sorted((drawn / "images" / split).iterdir())
    ]
    # Nor one that is nearly the same.
    assert min(abs(a - b).mean() for a, b in itertools.combinations(means, 2)) > 1


@pytest.mark.parametrize(("images", "validation"), [(1, 32), (160, 32), (200, 40)])
def test_a_fifth_and_at_least_32_are_for_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, validation: int
) -> None:
    blank = np.zeros((8, 8, 3), np.uint8), np.zeros((0, 5))
    monkeypatch.setattr("hvdyolo.data.synth.draw_picture", lambda random, classes: blank)
    write_dataset(tmp_path, images, 4, 0)
    assert len(list((tmp_path / "images/val").iterdir())) == validation
    assert len(list((tmp_path / "images/train").iterdir())) == images


def test_a_source_reads_it(drawn: Path) -> None:
    source = YoloSource(drawn)
    assert source.names == CLASS_NAMES[:4]
    assert {split: len(images) for split, images in source.splits.items()} == {"train": 40, "val": 32}
    assert source.findings == []
    assert yaml.safe_load((drawn / "data.yaml").read_text())["names"] == list(CLASS_NAMES[:4])


def test_boxes_end_where_the_shapes_do() -> None:
    """Drawn again from the same numbers, shape by shape."""
    for seed in range(40):
        shapes = _place_shapes(np.random.default_rng(seed), 8)
        for shape in shapes:
            mask = np.zeros((SIZE, SIZE))
            mask[shape.rows, shape.columns] = shape.coverage > 0.5
            cx, cy, w, h = shape.box()
            left, right = round((cx - w / 2) * SIZE), round((cx + w / 2) * SIZE)
            top, bottom = round((cy - h / 2) * SIZE), round((cy + h / 2) * SIZE)
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            assert mask.sum() == mask[top:bottom, left:right].sum() > 0
            inner = mask[top:bottom, left:right]
            assert all(edge.any() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))


def test_shapes_are_where_the_labels_say() -> None:
    """A lone shape differs from its surroundings along the middle of its box's edges or inside."""
    found = 0
    for seed in range(60):
        picture, labels = draw_picture(np.random.default_rng(seed), 1)  # discs
        for _, cx, cy, w, h in labels:
            if len(labels) == 1 and 0.1 < cx < 0.9 and 0.1 < cy < 0.9:
                x, y = int(cx * SIZE), int(cy * SIZE)
                inside = picture[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(0)
                edge = picture[min(int((cy + h / 2) * SIZE) + 4, SIZE - 1), x - 3 : x + 4].mean(0)
                assert abs(w - h) < 0.02
                found += int(abs(inside - edge).max() > 20)
    assert found >= 3


def test_sizes_span_8_to_60_percent_and_shapes_overlap() -> None:
    longest, overlaps = [], 0
    for seed in range(300):
        shapes = _place_shapes(np.random.default_rng(seed), 4)
        boxes = [shape.box() for shape in shapes]
        longest += [max(w, h) for _, _, w, h in boxes]
        overlaps += any(
            abs(a[0] - b[0]) < (a[2] + b[2]) / 2 and abs(a[1] - b[1]) < (a[3] + b[3]) / 2
            for a, b in itertools.combinations(boxes, 2)
        )
    assert 0.07 < min(longest) < 0.10
    assert 0.55 < max(longest) < 0.61
    # Even over the logarithm: a third below 16 %, a third above 30 %.
    assert 0.25 < np.mean(np.array(longest) < 0.157) < 0.45
    assert 0.2 < np.mean(np.array(longest) > 0.305) < 0.45
    assert overlaps > 60


def test_every_shape_stays_visible() -> None:
    for seed in range(100):
        shapes = _place_shapes(np.random.default_rng(seed), 8)
        owner = np.full((SIZE, SIZE), -1)
        for number, shape in enumerate(shapes):
            owner[shape.rows, shape.columns][shape.solid] = number
        for number, shape in enumerate(shapes):
            assert (owner == number).sum() >= 0.65 * shape.solid.sum()


def test_all_classes_are_as_frequent() -> None:
    labels = [shape.label for seed in range(300) for shape in _place_shapes(np.random.default_rng(seed), 4)]
    shares = np.bincount(labels, minlength=4) / len(labels)
    assert len(shares) == 4
    assert shares.min() > 0.2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", "0"], "--images must be at least 1"),
        (["--images", "5", "--classes", "3"], "--classes must be 4"),
        (["--images", "5", "--classes", "9"], "--classes must be 4 … 8, not 9"),
        (["--images", "many"], "invalid int value"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        main(["--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(MismatchError, match="is not empty"):
        main(["--out", str(tmp_path), "--images", "1"])
    assert contents(tmp_path) == {"mine": b"x"}
