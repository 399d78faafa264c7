"""Boxes that a network finds come back to where they are on the images, whatever their inputs look like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hvdyolo.config import EvaluationConfig, LoaderConfig
from hvdyolo.data.pack import main as pack
from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine import evaluator
from hvdyolo.metrics.average_precision import CocoScores, ScoredImage
from hvdyolo.models.build import build_model

# Width and height of an image, and its white box: x1, y1, x2, y2 in pixels. Some are larger than the input.
IMAGES = [
    (64, 32, (10, 4, 30, 28)),
    (32, 64, (2, 8, 22, 60)),
    (64, 64, (0, 0, 64, 10)),
    (128, 64, (20, 8, 60, 48)),
    (64, 128, (8, 100, 40, 128)),
    (64, 33, (50, 1, 64, 33)),
    (40, 64, (3, 5, 37, 9)),
]


class SeesWhite(nn.Module):
    """In place of a network: one box around what is white on an image, of the only class."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = 0

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.pixels += images[:, 0].numel()
        found = []
        for image in images:
            rows, columns = (image.mean(0) > 0.75).nonzero(as_tuple=True)
            x1, x2, y1, y2 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
            found.append([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 1.0, 1.0]])
        return (torch.tensor(found),)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PackedSplit:
    root = tmp_path_factory.mktemp("white")
    for folder in ("images", "labels"):
        (root / "source" / folder / "val").mkdir(parents=True)
    for number, (width, height, (x1, y1, x2, y2)) in enumerate(IMAGES):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 255
        Image.fromarray(pixels).save(root / "source/images/val" / f"{number}.png")
        box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        (root / "source/labels/val" / f"{number}.txt").write_text(" ".join(map(repr, (0, *box))) + "\n")
    (root / "source/data.yaml").write_text("names: [white]\nval: images/val\n")
    packing = ["--source", "yolo", "--root", root / "source", "--out", root / "packed"]
    assert pack([str(word) for word in packing]) == 0
    return PackedSplit(Path(root / "packed"), "val")


@pytest.fixture
def evaluate(split: PackedSplit, monkeypatch) -> Callable[[bool], tuple[CocoScores, dict[str, Any], int]]:
    """Scores, boxes by the image's name, and pixels that went through the network."""

    def run(rectangular: bool) -> tuple[CocoScores, dict[str, Any], int]:
        network, scored = SeesWhite(), []

        def match(images: list[ScoredImage], classes: int) -> Any:
            scored.extend(images)
            return match_images(images, classes)

        match_images = evaluator.match_images
        monkeypatch.setattr(evaluator, "fuse_batch_norms", lambda _: network)
        monkeypatch.setattr(evaluator, "match_images", match)
        with torch.device("meta"):
            model = build_model("yolov5n", 1)
        model.image_size = 64
        settings = EvaluationConfig(batch=2, rectangular=rectangular)
        beacon = Beacon()
        scores = evaluator.evaluate(
            model, split, SingleProcess(), torch.device("cpu"), settings, LoaderConfig(workers=0), beacon
        )
        beacon.close()
        monkeypatch.undo()
        return (
            scores,
            {split.name(image.image): image.boxes_xyxy.tolist() for image in scored},
            network.pixels,
        )

    return run


def test_boxes_are_where_they_were_drawn_in_squares_and_in_rectangles(evaluate) -> None:
    drawn = {f"{number}.png": [list(box)] for number, (_, _, box) in enumerate(IMAGES)}
    squares, of_squares, square_pixels = evaluate(False)
    rectangles, of_rectangles, rectangle_pixels = evaluate(True)
    assert {Path(name).name: boxes for name, boxes in of_squares.items()} == drawn
    assert of_rectangles == of_squares
    assert rectangles == squares
    assert squares.ap == 1.0
    assert square_pixels == 7 * 64 * 64
    # By shape, two each: 64 x 32 twice; 64 x 33, which needs 64, and the square; two portraits twice 64 high.
    assert rectangle_pixels == 2 * 64 * 32 + 2 * 64 * 64 + 2 * 64 * 64 + 64 * 32
