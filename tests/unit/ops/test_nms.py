"""Suppression against a plain loop in exact arithmetic, and the rules of selection one at a time."""

from fractions import Fraction
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvdyolo.ops import nms as module
from hvdyolo.ops.nms import Detections, nms, select_detections

Box = tuple[int, int, int, int]

# Few values, so that boxes coincide, scores tie and overlaps equal the threshold exactly.
BOXES = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 8)] * 2).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
SCORES = st.sampled_from([0.125, 0.25, 0.5, 0.75])
THRESHOLDS = st.sampled_from([0.25, 0.5, 0.75])
BLOCKS = pytest.mark.parametrize("block", [1, 3, 256])


def exact_iou(a: Box, b: Box) -> Fraction:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return Fraction(width * height, union) if union else Fraction(0)


def plain_suppression(boxes: list[Box], scores: list[float], labels: list[int], iou: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda index: (-scores[index], index)):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(exact_iou(boxes[index], boxes[other]) <= Fraction(iou) for other in rivals):
            kept.append(index)
    return kept


@BLOCKS
@given(found=st.lists(st.tuples(BOXES, SCORES), max_size=40), iou=THRESHOLDS)
def test_equals_the_plain_loop(block: int, found: list[tuple[Box, float]], iou: float) -> None:
    boxes, scores = [box for box, _ in found], [score for _, score in found]
    with patch.object(module, "_BLOCK", block):
        kept = nms(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores), iou)
    assert kept.tolist() == plain_suppression(boxes, scores, [0] * len(boxes), iou)


def test_a_suppressed_box_suppresses_nothing() -> None:
    # A chain of five, each overlapping the next by 1/3: the first, third and fifth stay.
    boxes = torch.tensor([[float(x), 0.0, x + 2.0, 1.0] for x in range(5)])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), 0.3).tolist() == [0, 2, 4]


def test_overlap_at_the_threshold_is_allowed() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0]])
    scores = torch.tensor([0.5, 0.9])
    assert nms(boxes, scores, 0.5).tolist() == [1, 0]
    assert nms(boxes, scores, 0.499).tolist() == [1]


def prediction(box: Box, objectness: float, *classes: float) -> list[float]:
    left, top, right, bottom = box
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, objectness, *classes]


def select(*rows: list[float], confidence=0.25, iou=0.5, max_boxes=300, multi_label=True) -> Detections:
    (found,) = select_detections(torch.tensor([rows]), confidence, iou, max_boxes, multi_label)
    return found


def test_detections_by_hand() -> None:
    found = select(
        prediction((0, 0, 10, 10), 0.5, 0.75, 0.25),
        prediction((20, 0, 30, 10), 0.75, 0.25, 1.0),
    )
    assert found.boxes_xyxy.tolist() == [[20, 0, 30, 10], [0, 0, 10, 10]]
    assert found.scores.tolist() == [0.75, 0.375]
    assert found.labels.tolist() == [1, 0]
    assert found.labels.dtype == torch.int64
    assert not found.capped


def test_objectness_and_product_must_both_exceed_the_confidence() -> None:
    box = (0, 0, 10, 10)
    assert len(select(prediction(box, 0.25, 1.0)).scores) == 0
    assert len(select(prediction(box, 0.5, 0.5)).scores) == 0
    assert len(select(prediction(box, 0.5, 0.53125)).scores) == 1
    # In single-label mode the same holds for the best class.
    assert len(select(prediction(box, 0.5, 0.125, 0.5), multi_label=False).scores) == 0


def test_one_box_may_carry_several_labels_in_evaluation_only() -> None:
    row = prediction((0, 0, 10, 10), 1.0, 0.5, 0.75, 0.125)
    assert select(row).labels.tolist() == [1, 0]
    assert select(row, multi_label=False).labels.tolist() == [1]


def test_an_empty_picture() -> None:
    for multi_label in (True, False):
        found = select(prediction((0, 0, 10, 10), 0.0, 1.0), multi_label=multi_label)
        assert found.boxes_xyxy.shape == (0, 4)
        assert (len(found.scores), len(found.labels), found.capped) == (0, 0, False)


def test_pictures_do_not_mix() -> None:
    rows = [prediction((0, 0, 10, 10), 0.5, 1.0), prediction((0, 0, 10, 10), 0.75, 1.0)]
    first, second = select_detections(torch.tensor([[rows[0]], [rows[1]]]), 0.25, 0.5, 300, True)
    assert first.scores.tolist() == [0.5]
    assert second.scores.tolist() == [0.75]


def apart(count: int) -> list[list[float]]:
    return [prediction((20 * n, 0, 20 * n + 10, 10), 1.0, 1 - n / 64) for n in range(count)]


def test_the_best_boxes_are_kept_and_the_cap_is_told() -> None:
    found = select(*apart(5), max_boxes=3)
    assert found.scores.tolist() == [1, 1 - 1 / 64, 1 - 2 / 64]
    assert found.capped
    assert not select(*apart(3), max_boxes=3).capped
    # Boxes that are suppressed anyhow do not count.
    assert not select(*apart(3), *apart(3), max_boxes=3).capped


def test_candidates_are_capped_by_score_before_suppression() -> None:
    equal = [prediction((0, 20 * n, 10, 20 * n + 10), 1.0, 0.5) for n in range(1, 5)]
    with patch.object(module, "_MOST_CANDIDATES", 4):
        crowded = select(*equal, *apart(2))
        exact = select(*equal[:3], *apart(1))
    assert crowded.scores.tolist() == [1, 1 - 1 / 64, 0.5, 0.5]
    assert crowded.boxes_xyxy[2:, 1].tolist() == [20, 40], "of equal scores the first rows"
    assert crowded.capped
    assert not exact.capped


@BLOCKS
@given(
    rows=st.lists(
        st.tuples(BOXES, SCORES, st.lists(SCORES, min_size=3, max_size=3)), min_size=1, max_size=25
    ),
    iou=THRESHOLDS,
    multi_label=st.booleans(),
    max_boxes=st.integers(1, 12),
)
def test_selection_equals_the_plain_rules(
    block: int,
    rows: list[tuple[Box, float, list[float]]],
    iou: float,
    multi_label: bool,
    max_boxes: int,
) -> None:
    candidates = []
    for box, objectness, classes in rows:
        if objectness > 0.2:
            scored = [(objectness * share, label) for label, share in enumerate(classes)]
            best = max(scored, key=lambda pair: pair[0])
            candidates += [(box, *pair) for pair in (scored if multi_label else [best]) if pair[0] > 0.2]
    boxes = [box for box, _, _ in candidates]
    scores = [score for _, score, _ in candidates]
    labels = [label for _, _, label in candidates]
    kept = plain_suppression(boxes, scores, labels, iou)
    with patch.object(module, "_BLOCK", block):
        found = select(
            *(prediction(box, objectness, *classes) for box, objectness, classes in rows),
            confidence=0.2,
            iou=iou,
            max_boxes=max_boxes,
            multi_label=multi_label,
        )
    assert found.capped == (len(kept) > max_boxes)
    kept = kept[:max_boxes]
    assert found.boxes_xyxy.tolist() == [list(boxes[index]) for index in kept]
    assert found.scores.tolist() == [scores[index] for index in kept]
    assert found.labels.tolist() == [labels[index] for index in kept]


def test_the_last_class_is_judged_as_exactly_as_the_first() -> None:
    # Twins 0.002 pixels on either side of the threshold, in a picture whose boxes reach far out: moved by
    # 80 times the picture's extent, single precision could not tell them apart.
    def rows(label: int) -> Tensor:
        result = torch.zeros(1, 5, 85)
        for index, right in enumerate([10.0, 5.002, 10.0, 4.998, 3000.0]):
            top = 50.0 * (index // 2)
            result[0, index, :4] = torch.tensor([right / 2, top + 5, right, 10.0])
            result[0, index, 4], result[0, index, 5 + label] = 1.0, 0.9 - index / 10
        return result

    def kept(label: int) -> list[list[float]]:
        (found,) = select_detections(rows(label), 0.25, 0.5, 300, True)
        return found.boxes_xyxy.tolist()

    assert len(kept(0)) == 4
    assert kept(79) == kept(0)


def test_half_precision_predictions_are_compared_in_single() -> None:
    # 1001..1007 and 1005..1011 overlap by 1/5; bfloat16 knows these corners to 4 pixels and would say 1/3.
    rows = torch.tensor([[[1004.0, 4.0, 6.0, 8.0, 1.0, 0.5], [1008.0, 4.0, 6.0, 8.0, 1.0, 0.5]]])
    (found,) = select_detections(rows.to(torch.bfloat16), 0.25, 0.25, 300, True)
    assert found.boxes_xyxy.dtype == torch.float32
    assert found.boxes_xyxy.tolist() == [[1001, 0, 1007, 8], [1005, 0, 1011, 8]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_and_a_processor_select_the_same() -> None:
    predictions = torch.rand(5, 900, 8, generator=torch.Generator().manual_seed(0))
    predictions[..., :4] *= 100
    predictions[2, :, 4] = 0  # a picture without candidates
    for multi_label in (False, True):
        here = select_detections(predictions, 0.4, 0.5, 50, multi_label)
        there = select_detections(predictions.cuda(), 0.4, 0.5, 50, multi_label)
        for one, other in zip(here, there, strict=True):
            assert other.boxes_xyxy.device.type == "cpu"
            assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
            assert torch.equal(one.scores, other.scores)
            assert torch.equal(one.labels, other.labels)
            assert one.capped == other.capped
