"""Decoding on one level small enough for a table, and where biases start."""

import math

import pytest
import torch

from hvdyolo.models.build import build_model
from hvdyolo.models.head import Detect, default_anchors

ANCHORS = torch.tensor([[[16.0, 8.0], [24.0, 40.0]]])  # pixels; two at one level of stride 8


def head(classes: int = 2) -> Detect:
    """A head whose raw output is its bias everywhere."""
    made = Detect([4], classes, ANCHORS, [8])
    torch.nn.init.zeros_(made.m[0].weight)
    torch.nn.init.zeros_(made.m[0].bias)
    return made


def test_anchors_are_kept_in_cells() -> None:
    assert head().anchors.tolist() == [[[2, 1], [3, 5]]]


def test_raw_levels_in_training() -> None:
    made = head()
    with torch.no_grad():
        made.m[0].bias.copy_(torch.arange(14.0))  # anchor-major: 7 values of each
    (level,) = made([torch.zeros(3, 4, 2, 5)])
    assert level.shape == (3, 2, 2, 5, 7)
    assert level[2, 1, 0, 4].tolist() == [7, 8, 9, 10, 11, 12, 13]


def test_boxes_of_zero_output() -> None:
    """A sigmoid of 0.5: the centre of each cell, and the anchor's own size."""
    boxes, raw = head().eval()([torch.zeros(1, 4, 2, 3)])
    assert boxes.shape == (1, 2 * 2 * 3, 7)
    assert raw[0].shape == (1, 2, 2, 3, 7)
    centres = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]  # rows, then columns
    assert boxes[0, :, :2].tolist() == centres * 2  # anchors first
    assert boxes[0, :6, 2:4].tolist() == [[16, 8]] * 6
    assert boxes[0, 6:, 2:4].tolist() == [[24, 40]] * 6
    assert (boxes[0, :, 4:] == 0.5).all()


def test_boxes_of_other_output() -> None:
    """Sigmoids of 0.75 and 0.25, in the second anchor of one cell."""
    made = head().eval()
    three = math.log(3)  # whose sigmoid is 3/4
    with torch.no_grad():
        made.m[0].bias[7:14] = torch.tensor([three, -three, -three, three, three, -three, three])
    boxes, _ = made([torch.zeros(1, 4, 2, 3)])
    found = boxes[0, 6 + 3 * 1 + 2].tolist()  # anchor 1, row 1, column 2
    expected = [
        (2 * 0.75 - 0.5 + 2) * 8, (2 * 0.25 - 0.5 + 1) * 8, 0.5**2 * 24, 1.5**2 * 40, 0.75, 0.25, 0.75,
    ]  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-6)


def test_stand_ins_for_anchors_take_boxes_of_all_sizes() -> None:
    anchors = default_anchors([8, 16, 32], 3)
    assert anchors[:, :, 0].tolist() == [[16, 32, 64], [32, 64, 128], [64, 128, 256]]
    assert anchors[..., 0].equal(anchors[..., 1])
    small = torch.logspace(math.log2(4.1), math.log2(120), 200, base=2)
    for aspect in (1.0, 3.0, 7.9):
        boxes = torch.stack([small, small * aspect], 1)  # the smaller side from half of the finest stride
        ratios = boxes[:, None] / anchors.view(-1, 2)
        assert (torch.maximum(ratios, 1 / ratios).amax(-1) < 4).any(1).all()


def test_levels_follow_one_another() -> None:
    two = torch.cat([ANCHORS, ANCHORS * 2])
    made = Detect([4, 6], 1, two, [8, 16]).eval()
    boxes, _ = made([torch.zeros(1, 4, 4, 4), torch.zeros(1, 6, 2, 2)])
    assert boxes.shape == (1, 32 + 8, 6)
    assert (boxes[0, :32, :2] < 40).all()
    assert boxes[0, -1, :2].min() > 16


@pytest.mark.parametrize(("classes", "start"), [(80, math.log(0.6 / 79.00001)), (1, math.log(0.6 / 1e-5))])
def test_biases_start_from_how_rare_objects_are(classes: int, start: float) -> None:
    torch.manual_seed(0)  # of 240 random numbers in single precision two are sometimes equal
    model = build_model("yolov5n", classes)
    objectness = (math.log(8 / 80**2), math.log(8 / 40**2), math.log(8 / 20**2))
    for convolution, expected in zip(model.head.m, objectness, strict=True):
        bias = convolution.bias.detach().view(3, 5 + classes)
        spread = convolution.in_channels**-0.5  # of torch's own random start, which stays underneath
        assert (bias[:, :4].abs() <= spread).all()
        assert ((bias[:, 4] - expected).abs() <= spread + 1e-5).all()
        assert ((bias[:, 5:] - start).abs() <= spread + 1e-5).all()
        assert bias[:, 4:].unique().numel() == 3 * (1 + classes)
