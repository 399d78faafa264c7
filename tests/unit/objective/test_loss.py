"""The loss against its formula written as plain loops, and properties that every change must keep."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hvdyolo.config import LossConfig
from hvdyolo.objective.assign import Assigner, Labels, LevelMatches
from hvdyolo.objective.class_weights import class_weights
from hvdyolo.objective.loss import LossTerms, StepCounts, detection_loss
from hvdyolo.objective.targets import LevelTargets, pad_matches

SIZE = 64
STRIDES = (8, 16, 32)
ANCHORS = np.array(
    [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]],
    np.float32,
)
PLAIN = LossConfig()


def labels_of(images: int, boxes: int, classes: int, seed: int = 0) -> list[Labels]:
    """Boxes that overlap, so that cells are contested; image 1 has none."""
    random = np.random.default_rng(seed)
    result = []
    for image in range(images):
        count = 0 if image == 1 else boxes
        number = random.integers(0, classes, (count, 1))
        centres = random.uniform(0.3, 0.7, (count, 2))
        sides = random.uniform(0.1, 0.9, (count, 2))
        result.append(np.hstack([number, centres, sides]).astype(np.float32))
    return result


def levels_of(images: int, classes: int, strides: Sequence[int] = STRIDES, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [
        torch.randn(images, 3, SIZE // stride, SIZE // stride, 5 + classes, dtype=torch.float64)
        for stride in strides
    ]


def assign(labels: Sequence[Labels], strides: Sequence[int] = STRIDES) -> tuple[LevelMatches, ...]:
    anchors = np.stack([ANCHORS[min(level, 2)] for level in range(len(strides))])
    return Assigner(tuple(strides), anchors, 4.0)(labels, SIZE, SIZE)


def counts_of(images: float, matches: Sequence[LevelMatches]) -> StepCounts:
    return StepCounts(
        images=torch.tensor(float(images)),
        matches=torch.tensor([float(len(level.cell)) for level in matches]),
    )


def pad(matches: tuple[LevelMatches, ...], levels: Sequence[Tensor]) -> tuple[LevelTargets, ...]:
    return pad_matches([matches], [level[..., 0].numel() for level in levels])


def loss_of(
    levels: Sequence[Tensor],
    labels: Sequence[Labels],
    settings: LossConfig = PLAIN,
    weights: Sequence[float] | None = None,
    strides: Sequence[int] = STRIDES,
) -> LossTerms:
    matches = assign(labels, strides)
    image_weights = torch.tensor([1.0] * len(labels) if weights is None else list(weights))
    counts = counts_of(image_weights.sum().item(), matches)
    of_classes = class_weights(settings.class_weights, np.ones(levels[0].shape[-1] - 5, dtype=np.int64))
    return detection_loss(levels, pad(matches, levels), image_weights, counts, settings, SIZE, of_classes)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, target: float, positive: float = 1.0, gamma: float = 0.0) -> float:
    p = sigmoid(logit)
    plain = -(positive * target * math.log(p) + (1 - target) * math.log(1 - p))
    if gamma == 0:
        return plain
    p_t = target * p + (1 - target) * (1 - p)
    alpha_t = target * 0.25 + (1 - target) * 0.75
    return alpha_t * (1 - p_t) ** gamma * plain


def complete_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """From the definition, one pair of centre and size."""
    eps = 1e-7
    overlap, enclosing = [], []
    for axis in (0, 1):
        low = [box[axis] - box[axis + 2] / 2 for box in (a, b)]
        high = [box[axis] + box[axis + 2] / 2 for box in (a, b)]
        overlap.append(max(min(high) - max(low), 0))
        enclosing.append(max(high) - min(low))
    intersection = overlap[0] * overlap[1]
    iou = intersection / (a[2] * a[3] + b[2] * b[3] - intersection + eps)
    distance = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    alpha = v / (v - iou + 1 + eps)
    return iou - distance / (enclosing[0] ** 2 + enclosing[1] ** 2 + eps) - alpha * v


def plain_loss(
    levels: Sequence[Tensor], labels: Sequence[Labels], settings: LossConfig, balance: Sequence[float]
) -> tuple[float, float, float]:
    """Box, objectness and class terms with their gains, cell by cell."""
    strides = [SIZE // level.shape[2] for level in levels]
    classes = levels[0].shape[-1] - 5
    shares = [1.0] * classes
    if settings.class_weights is not None:
        given = [float(number) for number in settings.class_weights.split(",")]
        shares = [number * classes / sum(given) for number in given]
    box = objectness = classification = 0.0
    for raw, matches, weight in zip(levels, assign(labels, strides), balance, strict=True):
        values = raw.reshape(-1, 5 + classes).tolist()
        quality = [0.0] * len(values)
        box_sum = class_sum = 0.0
        for place, cell in enumerate(matches.cell):
            tx, ty, tw, th, _, *scores = values[cell]
            anchor = matches.anchor_wh[place]
            predicted = (
                2 * sigmoid(tx) - 0.5,
                2 * sigmoid(ty) - 0.5,
                (2 * sigmoid(tw)) ** 2 * float(anchor[0]),
                (2 * sigmoid(th)) ** 2 * float(anchor[1]),
            )
            iou = complete_iou(predicted, matches.box_cxcywh[place].tolist())
            box_sum += 1 - iou
            quality[cell] = max(iou, 0)  # the last one stands
            for number, score in enumerate(scores):
                right = number == matches.label[place]
                target = 1 - settings.label_smoothing / 2 if right else settings.label_smoothing / 2
                loss = cross_entropy(score, target, settings.positive_class, settings.focal_gamma)
                class_sum += shares[number] * loss
        if len(matches.cell):
            box += box_sum / len(matches.cell)
            classification += class_sum / len(matches.cell) / classes if classes > 1 else 0.0
        cells = (
            cross_entropy(value[4], target, settings.positive_objectness, settings.focal_gamma)
            for value, target in zip(values, quality, strict=True)
        )
        objectness += weight * sum(cells) / len(values)
    by_levels = 3 / len(levels)
    return (
        box * settings.box * by_levels,
        objectness * settings.objectness * (SIZE / 640) ** 2 * by_levels,
        classification * settings.classification * classes / 80 * by_levels,
    )


@pytest.mark.parametrize(
    ("classes", "settings"),
    [
        (classes, settings)
        for classes in (1, 4)
        for settings in (
            PLAIN,
            LossConfig(label_smoothing=0.1, positive_objectness=1.5, positive_class=0.7),
            LossConfig(box=0.1, objectness=0.3, classification=2.0),
            LossConfig(focal_gamma=1.5, positive_objectness=1.5, label_smoothing=0.1),
        )
    ]
    # Of powers of two, for weights are single and their mean, 2, has to come out whole.
    + [(4, LossConfig(class_weights="1, 4, 2, 1", focal_gamma=2.0))],
)
@pytest.mark.parametrize(
    ("strides", "balance"),
    [
        ((8, 16), (4, 1)),
        (STRIDES, (4, 1, 0.4)),
        ((4, 8, 16, 32), (4, 1, 0.25, 0.06)),
        ((2, 4, 8, 16, 32), (4, 1, 0.25, 0.06, 0.02)),
    ],
)
def test_equals_the_formula(
    classes: int, settings: LossConfig, strides: Sequence[int], balance: Sequence[float]
) -> None:
    labels, levels = labels_of(3, 5, classes), levels_of(3, classes, strides)
    terms = loss_of(levels, labels, settings, strides=strides)
    expected = plain_loss(levels, labels, settings, balance)
    found = (terms.box.item(), terms.objectness.item(), terms.classification.item())
    # Labels and anchors come in single precision; the arithmetic is double.
    assert found == pytest.approx(expected, rel=1e-12)
    assert terms.total.item() == pytest.approx(3 * sum(expected), rel=1e-12)
    assert not any(matches.keeps_objectness.all() for matches in assign(labels, strides)[:1]), (
        "the case should have contested cells"
    )


def test_no_targets_leave_the_objectness_alone() -> None:
    levels = [torch.zeros(2, 3, SIZE // stride, SIZE // stride, 8, requires_grad=True) for stride in STRIDES]
    terms = loss_of(levels, labels_of(2, 0, 3))
    # Every cell has logit 0 and target 0: log 2 each, times balances 4 + 1 + 0.4 and the gain of the size.
    assert terms.objectness.item() == pytest.approx(5.4 * math.log(2) * (SIZE / 640) ** 2, rel=1e-6)
    assert terms.box.item() == 0
    assert terms.classification.item() == 0
    terms.total.backward()
    for level in levels:
        assert level.grad is not None
        assert level.grad.isfinite().all()
        assert (level.grad[..., 4] > 0).all()
        assert level.grad[..., :4].eq(0).all()
        assert level.grad[..., 5:].eq(0).all()


def test_one_class_has_no_class_term() -> None:
    levels = [level.requires_grad_() for level in levels_of(2, 1)]
    terms = loss_of(levels, labels_of(2, 5, 1))
    assert terms.classification.item() == 0
    terms.total.backward()
    assert all(level.grad is not None and level.grad[..., 5].eq(0).all() for level in levels)


def test_objectness_target_takes_no_gradient() -> None:
    levels = [level.requires_grad_() for level in levels_of(2, 3)]
    loss_of(levels, labels_of(2, 5, 3)).objectness.backward()
    for level in levels:
        assert level.grad is not None
        assert level.grad[..., :4].eq(0).all()


def test_images_of_weight_zero_count_nowhere() -> None:
    labels, levels = labels_of(3, 5, 3), levels_of(3, 3)
    labels[2] = labels[2][:0]
    fewer = loss_of([level[:2] for level in levels], labels[:2])
    levels = [level.requires_grad_() for level in levels]
    terms = loss_of(levels, labels, weights=[1, 1, 0])
    for name in ("box", "objectness", "classification", "total"):
        assert getattr(terms, name).item() == pytest.approx(getattr(fewer, name).item(), rel=1e-12)
    terms.total.backward()
    for level in levels:
        assert level.grad is not None
        assert level.grad[2].eq(0).all()
        assert level.grad[1].ne(0).any(), "an image without boxes does count"


def test_a_batch_of_weight_zero_only_is_finite() -> None:
    terms = loss_of(levels_of(1, 3), [np.zeros((0, 5), np.float32)], weights=[0])
    assert terms.total.item() == 0


@pytest.mark.parametrize("settings", [PLAIN, LossConfig(focal_gamma=2.0)])
@pytest.mark.parametrize("cuts", [(0, 4, 8), (0, 1, 3, 6, 8), tuple(range(9))])
def test_shares_of_ranks_and_batches_add_up(cuts: tuple[int, ...], settings: LossConfig) -> None:
    labels = labels_of(8, 5, 3)
    weights = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 0])
    labels = [rows if weight else rows[:0] for rows, weight in zip(labels, weights, strict=True)]
    levels = [level.requires_grad_() for level in levels_of(8, 3)]
    matches = assign(labels)
    counts = counts_of(6, matches)
    of_classes = torch.tensor([0.5, 1.0, 1.5])
    whole = detection_loss(levels, pad(matches, levels), weights, counts, settings, SIZE, of_classes)
    expected = torch.autograd.grad(whole.total, levels)
    shares = []
    for start, stop in pairwise(cuts):
        part = [level[start:stop] for level in levels]
        targets = pad(assign(labels[start:stop]), part)
        shares.append(detection_loss(part, targets, weights[start:stop], counts, settings, SIZE, of_classes))
    for name in ("box", "objectness", "classification", "total"):
        total = sum(getattr(share, name) for share in shares)
        assert total.item() == pytest.approx(getattr(whole, name).item(), rel=1e-12)
    found = torch.autograd.grad(sum(share.total for share in shares), levels)
    for one, other in zip(expected, found, strict=True):
        assert one.abs().max() > 1e-4
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


def test_padding_changes_nothing() -> None:
    labels, levels = labels_of(2, 5, 3), levels_of(2, 3)
    matches = assign(labels)
    counts = counts_of(2, matches)
    short = pad(matches, levels)
    long = [
        LevelTargets(
            cell=torch.cat([level.cell, torch.zeros(64, dtype=torch.int64)]),
            box_cxcywh=torch.cat([level.box_cxcywh, torch.ones(64, 4)]),
            anchor_wh=torch.cat([level.anchor_wh, torch.ones(64, 2)]),
            label=torch.cat([level.label, torch.zeros(64, dtype=torch.int64)]),
            objectness_cell=torch.cat([level.objectness_cell, torch.full((64,), raw[..., 0].numel())]),
            valid=torch.cat([level.valid, torch.zeros(64)]),
        )
        for level, raw in zip(short, levels, strict=True)
    ]
    one = detection_loss(levels, short, torch.ones(2), counts, PLAIN, SIZE)
    other = detection_loss(levels, long, torch.ones(2), counts, PLAIN, SIZE)
    assert one.total.item() == pytest.approx(other.total.item(), rel=1e-14)


@pytest.mark.parametrize("extreme", [-1000.0, 1000.0])
def test_padding_is_finite_whatever_the_first_cell_predicts(extreme: float) -> None:
    levels = levels_of(2, 3)
    for level in levels:
        level[0, 0, 0, 0, :4] = extreme  # a box without area, or of no finite shape
        level.requires_grad_()
    terms = loss_of(levels, [np.zeros((0, 5), np.float32)] * 2)
    assert terms.total.isfinite()
    terms.total.backward()
    for level in levels:
        assert level.grad is not None
        assert level.grad.isfinite().all()
        assert level.grad[..., :4].eq(0).all()


def test_gains_follow_size_classes_and_levels() -> None:
    labels, levels = labels_of(2, 5, 3), levels_of(2, 3)
    matches = assign(labels)
    targets, counts = pad(matches, levels), counts_of(2, matches)
    small = detection_loss(levels, targets, torch.ones(2), counts, PLAIN, 320)
    large = detection_loss(levels, targets, torch.ones(2), counts, PLAIN, 640)
    assert large.objectness.item() == pytest.approx(4 * small.objectness.item(), rel=1e-12)
    assert large.box.item() == small.box.item()
    assert large.classification.item() == small.classification.item()


def test_layout_of_the_predictions_does_not_matter() -> None:
    labels, levels = labels_of(2, 5, 3), levels_of(2, 3)
    turned = [level.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4) for level in levels]
    assert turned[0].stride() != levels[0].stride()
    expected = loss_of(levels, labels).total.item()
    assert loss_of(turned, labels).total.item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_predictions_are_summed_in_single() -> None:
    labels, levels = labels_of(2, 5, 3), levels_of(2, 3)
    rounded = [level.bfloat16() for level in levels]
    terms = loss_of(rounded, labels)
    assert terms.total.dtype == torch.float32
    expected = loss_of([level.double() for level in rounded], labels)
    assert terms.total.item() == pytest.approx(expected.total.item(), rel=1e-5)


def test_no_step_waits_for_the_device() -> None:
    """Tensors without values: whatever asks for one, or has a shape that depends on one, raises."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        labels = labels_of(2, 5, 3)
        levels = [mode.from_tensor(level).requires_grad_() for level in levels_of(2, 3)]
        with mode:
            targets = [
                LevelTargets(
                    cell=torch.zeros(64, dtype=torch.int64),
                    box_cxcywh=torch.ones(64, 4),
                    anchor_wh=torch.ones(64, 2),
                    label=torch.zeros(64, dtype=torch.int64),
                    objectness_cell=torch.zeros(64, dtype=torch.int64),
                    valid=torch.ones(64),
                )
                for _ in levels
            ]
            counts = StepCounts(images=torch.ones(()), matches=torch.ones(3))
            settings = replace(
                PLAIN, label_smoothing=0.1, positive_class=2.0, positive_objectness=2.0, focal_gamma=1.5
            )
            terms = detection_loss(
                levels, targets, torch.ones(len(labels)), counts, settings, SIZE, torch.ones(3)
            )
            terms.total.backward()
    assert levels[0].grad is not None
