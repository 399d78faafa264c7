"""YOLOv5's loss, as shares that add up over batches and ranks to the loss of a whole step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvdyolo.config import LossConfig
from hvdyolo.objective.cross_entropy import binary_cross_entropies
from hvdyolo.objective.targets import LevelTargets
from hvdyolo.ops.iou import complete_iou

_BALANCE = {3: (4.0, 1.0, 0.4)}
_BALANCE_OTHERWISE = (4.0, 1.0, 0.25, 0.06, 0.02)


@dataclass(frozen=True)
class StepCounts:
    """Over all ranks and batches of one optimizer step.

    Attributes:
        images: () images that count (weight 1).
        matches: (levels,) matches.
    """

    images: Tensor
    matches: Tensor


@dataclass(frozen=True)
class LossTerms:
    """Shares of the step's mean terms, gains included, and of the total that is minimised.

    ``total`` is their sum times the step's images, as YOLOv5 multiplies by the batch.
    """

    box: Tensor
    objectness: Tensor
    classification: Tensor
    total: Tensor


def detection_loss(
    levels: Sequence[Tensor],
    targets: Sequence[LevelTargets],
    image_weights: Tensor,
    counts: StepCounts,
    settings: LossConfig,
    image_size: int,
    class_weights: Tensor | None = None,
) -> LossTerms:
    """The share of one batch on one rank in the loss of its optimizer step.

    Args:
        levels: raw predictions, each (B, anchors, H, W, 5 + C).
        targets: their matches, a level.
        image_weights: (B,) 1, or 0 for images that only fill the batch; those have no matches.
        counts: what the terms are divided by.
        settings: gains, smoothing and weights of positive targets.
        image_size: side of the inputs for which the gain of objectness is meant, pixels.
        class_weights: (C,) what each class's entropies are multiplied by, positive and negative ones.
    """
    # In the predictions' type, so a float64 model has a float64 loss, but never in half precision.
    dtype = torch.promote_types(levels[0].dtype, torch.float32)
    zero = torch.zeros((), dtype=dtype, device=levels[0].device)
    box, objectness, classification = zero, zero, zero
    balances = _BALANCE.get(len(levels), _BALANCE_OTHERWISE)
    weights = image_weights.to(dtype)
    images = counts.images.to(dtype).clamp_min(1)
    for level, (raw, target, balance) in enumerate(
        zip(levels, targets, balances[: len(levels)], strict=True)
    ):
        raw = raw.to(dtype)
        valid = target.valid.to(dtype)
        # A level without matches adds nothing: its sums are 0, and are divided by 1.
        matches = counts.matches[level].to(dtype).clamp_min(1)
        # Not an index in brackets: the backward pass of that takes eight times as long on a CPU.
        matched = raw.reshape(-1, raw.shape[-1]).index_select(0, target.cell)  # (P, 5 + C)
        # Padding shows the first cell, whose prediction may be anything, and 0 times infinity is not 0.
        matched = matched.where(target.valid[:, None] > 0, 0.0)
        iou = complete_iou(_boxes_in_cells(matched, target), target.box_cxcywh.to(dtype))
        box = box + ((1 - iou) * valid).sum() / matches
        objectness = objectness + balance * _objectness(raw, iou, target, weights, settings) / (
            images * raw[0, ..., 0].numel()
        )
        classification = (
            classification + _classification(matched, target, valid, settings, class_weights) / matches
        )
    box_gain, objectness_gain, class_gain = _gains(settings, len(levels), levels[0].shape[-1] - 5, image_size)
    box, objectness, classification = (
        box * box_gain, objectness * objectness_gain, classification * class_gain
    )  # fmt: skip
    return LossTerms(box, objectness, classification, (box + objectness + classification) * images)


def _gains(settings: LossConfig, levels: int, classes: int, image_size: int) -> tuple[float, float, float]:
    """Gains are published for three levels, 80 classes and 640 pixels."""
    by_levels = 3 / levels
    return (
        settings.box * by_levels,
        settings.objectness * (image_size / 640) ** 2 * by_levels,
        settings.classification * classes / 80 * by_levels,
    )


def _boxes_in_cells(matched: Tensor, target: LevelTargets) -> Tensor:
    """(P, 4) predicted boxes, the centre less its cell's corner."""
    centre = matched[:, 0:2].sigmoid() * 2 - 0.5
    size = (matched[:, 2:4].sigmoid() * 2).square() * target.anchor_wh.to(matched.dtype)
    return torch.cat([centre, size], 1)


def _objectness(
    raw: Tensor, iou: Tensor, target: LevelTargets, weights: Tensor, settings: LossConfig
) -> Tensor:
    """Sum over cells; a matched cell's target is how well its box fits."""
    cells = raw[..., 4].numel()
    # The slot past the end takes what sets no cell, so every index is written at most once elsewhere.
    quality = torch.zeros(cells + 1, dtype=raw.dtype, device=raw.device)
    quality = quality.scatter(0, target.objectness_cell, iou.detach().clamp_min(0))
    losses = binary_cross_entropies(
        raw[..., 4],
        quality[:cells].view(raw.shape[:-1]),
        settings.positive_objectness,
        settings.focal_gamma,
    )
    return (losses.sum((1, 2, 3)) * weights).sum()


def _classification(
    matched: Tensor, target: LevelTargets, valid: Tensor, settings: LossConfig, class_weights: Tensor | None
) -> Tensor:
    """Sum over matches of the mean over classes; with one class there is nothing to tell apart."""
    classes = matched.shape[1] - 5
    if classes == 1:
        return matched.new_zeros(())
    negative = settings.label_smoothing / 2
    numbers = torch.arange(classes, device=matched.device)
    wanted = (target.label[:, None] == numbers).to(matched.dtype) * (1 - 2 * negative) + negative
    losses = binary_cross_entropies(matched[:, 5:], wanted, settings.positive_class, settings.focal_gamma)
    if class_weights is not None:
        losses = losses * class_weights
    return (losses.mean(1) * valid).sum()
