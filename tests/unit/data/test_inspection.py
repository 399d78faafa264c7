from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data.draw import draw_detections, draw_outlines
from hvdyolo.data.inspection import main
from hvdyolo.utils.errors import UsageError

Build = Callable[..., Any]


def test_a_split_is_described_in_figures(synthetic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(synthetic)]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in told if line[0] in ("train:", "val:")] == [
        ["train:", "40", "images,"], ["val:", "32", "images,"]
    ]  # fmt: skip
    widths = [line for line in told if line[:2] == ["image", "width"]]
    assert widths == [["image", "width"] + ["320"] * 5] * 2


def test_one_shard_is_described_alone(packed: Build, capsys: pytest.CaptureFixture[str]) -> None:
    data = packed(shards=3, each=4)
    main([str(data.root / data.records[1].file)])
    told = capsys.readouterr().out
    # Samples 4 … 7 have 0, 1, 2 and 3 boxes, whose classes count up from 0.
    assert told.startswith(f"train: 4 images, 6 boxes, {data.records[1].file}\n")
    counts = {line.split()[0]: line.split()[1] for line in told.splitlines() if line.startswith("    ")}
    assert counts == {"cat": "3", "dog": "2", "emu": "1"}
    assert "marked: 2 crowd, 1 difficult\n" in told  # flags count up from 0 in each sample


def test_outlines_are_counted_and_drawn(
    packed: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = packed(shards=2, each=4, polygons=True)
    main([str(data.root), "--samples", "2", "--out", str(tmp_path / "pictures")])
    # Of 0, 1, 2, 3 boxes, twice, the third has none.
    assert "  outlines: 10 objects, 10 polygons of 40 points\n" in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    square = np.array([[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.25, 0.5]], dtype=np.float32)
    drawn = draw_outlines(image, [[], [square]], np.array([1, 0])).any(2)
    expected = np.zeros((40, 80), dtype=bool)
    expected[10:21, 20:41] = True
    expected[11:20, 21:40] = False
    np.testing.assert_array_equal(drawn, expected)
    assert not image.any()


def test_pictures_show_the_boxes(synthetic: Path, tmp_path: Path) -> None:
    main([str(synthetic), "--split", "val", "--samples", "3", "--out", str(tmp_path / "pictures")])
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"val-{number:06d}.png" for number in range(3)]
    assert Image.open(pictures[0]).size == (640, 640)  # enlarged, or the names would hide it


@pytest.mark.parametrize("words", [["--split", "test"], ["--samples", "-1"], ["--colour"]])
def test_wrong_words_are_told(synthetic: Path, words: list[str]) -> None:
    with pytest.raises(UsageError):
        main([str(synthetic), *words])


def test_a_file_beside_the_shards_is_none_of_them(synthetic: Path) -> None:
    with pytest.raises(UsageError, match=r"lint\.txt is not a shard"):
        main([str(synthetic / "lint.txt")])


def test_lines_are_drawn_on_the_box_and_nothing_inside_it(tmp_path: Path) -> None:
    image = np.zeros((500, 600, 3), dtype=np.uint8)
    boxes = np.array([[100.0, 200.0, 300.0, 400.0]])
    draw_detections(image, boxes, np.array([1]), np.array([0.5]), ("cat", "dog"), tmp_path / "a.png")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert drawn.shape == image.shape
    for row, column in ((200, 200), (400, 200), (300, 100), (300, 300)):
        assert drawn[row, column].max() > 200
    assert drawn[210:390, 110:290].max() == 0
    assert drawn[420:].max() == 0
    assert drawn[180:200, 100:160].max() > 200  # the name, above the box


def test_boxes_at_and_beyond_the_border_can_be_drawn(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    boxes = np.array([[-5.0, -5.0, 70.0, 50.0], [59.0, 39.0, 60.0, 40.0], [10.0, 10.0, 5.0, 5.0]])
    labels = np.array([0, 1, 2])
    draw_detections(image, boxes, labels, None, ("a", "b", "c" * 40), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (480, 320)
