"""When anchors are fitted, and when those that there are stay."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hvdyolo.data.box_sizes import draw_box_sizes
from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.engine import auto_anchor
from hvdyolo.engine.auto_anchor import AnchorCheck, check_anchors, fit_model_anchors
from hvdyolo.engine.transfer import Transfer
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.anchors import best_possible_recall
from hvdyolo.settings import read_config

HUGE = torch.tensor([[[400.0, 400], [500, 500], [600, 600]]]).repeat(3, 1, 1)


@pytest.fixture(scope="module")
def split(synthetic: Path) -> PackedSplit:
    return PackedSplit(synthetic, "train")


def model(description: str = "yolov5n") -> DetectionModel:
    with torch.random.fork_rng():
        made = build_model(description, 4)
    made.image_size = 160
    return made


@pytest.fixture
def check(split: PackedSplit) -> Callable[..., AnchorCheck]:
    def run(model: DetectionModel, stand_ins: bool = False, threshold: float = 4.0) -> AnchorCheck:
        comm = SingleProcess()
        return fit_model_anchors(model, split, comm, threshold=threshold, seed=0, stand_ins=stand_ins)

    return run


def recall(split: PackedSplit, anchors: torch.Tensor) -> float:
    sizes = draw_box_sizes(split, range(len(split)), 160, 10**6, 0)
    return best_possible_recall(sizes, anchors.reshape(-1, 2).numpy(), 4.0)


def test_anchors_that_take_the_boxes_stay(check, split: PackedSplit) -> None:
    made = model()
    before = made.anchors_pixels.clone()
    found = check(made)
    assert not found.fitted
    assert found.recall == found.recall_before == recall(split, before) > 0.98
    assert made.anchors_pixels.equal(before)


def test_anchors_that_miss_are_replaced_by_area_over_the_levels(check, split: PackedSplit) -> None:
    made = model()
    made.set_anchors(HUGE)
    found = check(made)
    assert found.fitted
    assert found.recall_before == recall(split, HUGE) < 0.5
    assert found.recall == recall(split, made.anchors_pixels) > 0.98
    areas = made.anchors_pixels.prod(-1).flatten()
    assert (areas.diff() >= 0).all()
    assert areas.unique().numel() > 3
    assert found.boxes > 100


def test_anchors_that_are_no_better_are_not_taken(check, monkeypatch) -> None:
    made = model()
    made.set_anchors(HUGE)
    monkeypatch.setattr(auto_anchor, "fit_anchors", lambda *_: HUGE.reshape(-1, 2).numpy() * 2)
    found = check(made)
    assert not found.fitted
    assert made.anchors_pixels.equal(HUGE)


def test_stand_ins_are_replaced_though_they_take_all(check) -> None:
    made = model("yolov5n-p2")
    before = made.anchors_pixels.clone()
    assert check(made).recall_before > 0.98
    assert made.anchors_pixels.equal(before)
    found = check(made, stand_ins=True)
    assert found.fitted
    assert found.recall > 0.98
    assert not made.anchors_pixels.equal(before)


def test_levels_get_their_anchors_by_stride_and_not_by_place(check) -> None:
    made = model()
    made.head.strides = (32, 8, 16)
    made.set_anchors(HUGE)
    check(made)
    areas = made.anchors_pixels.prod(-1)
    assert areas[1].max() <= areas[2].min()
    assert areas[2].max() <= areas[0].min()


def test_too_few_boxes_leave_what_there_is(check, monkeypatch, caplog) -> None:
    monkeypatch.setattr(auto_anchor, "MOST_BOXES", 5)
    monkeypatch.setattr(auto_anchor.LOGGER, "propagate", True)
    made = model("yolov5n-p2")
    before = made.anchors_pixels.clone()
    found = check(made, stand_ins=True)
    assert (found.fitted, found.boxes) == (False, 5)
    assert made.anchors_pixels.equal(before)
    assert "5 boxes are too few" in caplog.text


@pytest.mark.parametrize(
    ("description", "automatic", "transfer", "anchors", "fitted"),
    [
        ("yolov5n", True, None, None, False),  # good enough
        ("yolov5n", True, None, HUGE, True),
        ("yolov5n", False, None, HUGE, None),  # not looked at
        ("yolov5n-p2", False, None, None, True),  # there are none to keep
        ("yolov5n-p2", True, Transfer(1, 1, {}), None, False),  # those of the weights, and good enough
        ("yolov5n-p2", False, Transfer(1, 1, {}), None, None),
        ("yolov5n-p2", False, Transfer(1, 2, {"model.27.anchors": "not there"}), None, True),
    ],
)
def test_settings_description_and_weights_decide_what_is_looked_at(
    split: PackedSplit, description, automatic, transfer, anchors, fitted
) -> None:
    made = model(description)
    if anchors is not None:
        made.set_anchors(anchors)
    config = read_config(None, ["--model.auto_anchor", str(automatic).lower()])
    found = check_anchors(config, made, transfer, split, SingleProcess())
    assert (None if found is None else found.fitted) == fitted
