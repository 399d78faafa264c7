"""Overlaps computed by hand; complete IoU down to where eps stands and what takes a gradient."""

import math

import pytest
import torch
from torch import Tensor

from hvdyolo.ops.iou import complete_iou, pairwise_iou


def test_pairwise_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    expected = torch.tensor([[1 / 7, 0.0, 1.0], [4 / 16, 4 / 16, 4 / 16]])
    assert torch.allclose(pairwise_iou(a, b), expected, atol=1e-7)


def test_pairwise_leaves_its_arguments_alone() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    pairwise_iou(a, a)
    assert a.equal(torch.tensor([[0.0, 0.0, 2.0, 2.0]]))


def test_empty_and_inverted_boxes_overlap_nothing() -> None:
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    inverted = torch.tensor([[3.0, 3.0, 1.0, 1.0]])
    square = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert pairwise_iou(point, point).item() == 0
    assert pairwise_iou(point, square).item() == 0
    assert pairwise_iou(inverted, square).item() == 0
    assert pairwise_iou(square[:0], square).shape == (0, 1)


def ciou(a: list[float], b: list[float]) -> float:
    pair = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    return complete_iou(*pair).item()


def test_complete_iou_of_the_same_box_is_one() -> None:
    assert ciou([5, 6, 7, 8], [5, 6, 7, 8]) == pytest.approx(1, abs=1e-8)


def test_distance_term() -> None:
    # (0, 0, 2, 2) and (3, 0, 5, 2): no overlap; centres 3 apart; the enclosing box is 5 by 2.
    assert ciou([1, 1, 2, 2], [4, 1, 2, 2]) == pytest.approx(-9 / 29, abs=1e-8)


def test_aspect_term() -> None:
    # 2 by 2 and 4 by 1 around one centre: IoU 2 / 6, and
    # v = 4/pi^2 (atan 4 - atan 1)^2 = 0.118365, alpha = v / (v - 1/3 + 1) = 0.150778.
    assert ciou([0, 0, 2, 2], [0, 0, 4, 1]) == pytest.approx(1 / 3 - 0.118365 * 0.150778, abs=1e-6)


def test_eps_is_in_the_union() -> None:
    # Area 1e-6, the same box: 1e-6 / (1e-6 + 1e-7).
    assert ciou([0, 0, 1e-3, 1e-3], [0, 0, 1e-3, 1e-3]) == pytest.approx(1 / 1.1, rel=1e-9)


def test_eps_is_in_the_squared_diagonal() -> None:
    # Side by side: centres 1e-3 apart, diagonal squared (2e-3)^2 + (1e-3)^2 + 1e-7.
    assert ciou([0, 0, 1e-3, 1e-3], [1e-3, 0, 1e-3, 1e-3]) == pytest.approx(-1e-6 / 5.1e-6, rel=1e-9)


def test_weight_of_the_aspect_term_takes_no_gradient() -> None:
    target = torch.tensor([[0.0, 0.0, 4.0, 1.0]], dtype=torch.float64)

    def parts(width: float) -> tuple[float, float]:
        """IoU and aspect term of a box 2 high around the same centre, from the definition."""
        overlap = min(width, 4) * 1
        v = 4 / math.pi**2 * (math.atan(4) - math.atan(width / 2)) ** 2
        return overlap / (2 * width + 4 - overlap), v

    def slope(step: float = 1e-5) -> tuple[float, float]:
        low, high = parts(2 - step), parts(2 + step)
        return (high[0] - low[0]) / (2 * step), (high[1] - low[1]) / (2 * step)

    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    complete_iou(box, target).sum().backward()
    iou, v = parts(2)
    iou_slope, v_slope = slope()
    alpha = v / (v - iou + 1)
    assert box.grad is not None
    assert box.grad[0, 2].item() == pytest.approx(iou_slope - alpha * v_slope, rel=1e-5)
    # With a gradient through alpha it would be visibly different.
    alpha_slope = (v_slope * (1 - iou) + v * iou_slope) / (v - iou + 1) ** 2
    assert abs(alpha_slope * v) > 1e-3


def test_gradients_are_finite_for_far_and_flat_boxes() -> None:
    a = torch.tensor([[1e3, -1e3, 1e-4, 1e4], [0.0, 0.0, 1.0, 1.0]], requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    value: Tensor = complete_iou(a, b)
    value.sum().backward()
    assert value.isfinite().all()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("width", [1e-30, 1e-7, 1.0, 1e4])
@pytest.mark.parametrize("height", [0.0, 1e-40, 1e-20, 1e-8])
def test_gradients_are_finite_for_heights_that_underflow(width: float, height: float) -> None:
    boxes = torch.tensor([[0.5, 0.5, width, height]], requires_grad=True)
    found = complete_iou(boxes, torch.tensor([[0.5, 0.5, 2.0, 1.0]]))
    found.sum().backward()
    assert found.isfinite().all()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_small_heights_count_as_they_are() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1e-3, 1e-6]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    aspect = 4 / math.pi**2 * (math.atan(1) - math.atan(1000)) ** 2
    iou = 1e-9 / (1 + 1e-7)
    expected = iou - aspect**2 / (aspect - iou + 1 + 1e-7)
    assert complete_iou(boxes, target).item() == pytest.approx(expected, abs=1e-12)
