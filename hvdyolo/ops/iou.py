"""Intersection over union, plain and complete."""

import math

import torch
from torch import Tensor

from hvdyolo.ops.boxes import cxcywh_to_xyxy


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(N, 4), (M, 4) → (N, M); 0 where a union is empty."""
    low = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    intersection = (high - low).clamp_min(0).prod(-1)
    union = _area(a_xyxy)[:, None] + _area(b_xyxy)[None] - intersection
    return torch.where(union > 0, intersection / union.clamp_min(1e-30), 0.0)


def complete_iou(a_cxcywh: Tensor, b_cxcywh: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU of pairs (arXiv 1911.08287): IoU less a distance and an aspect term.

    (N, 4), (N, 4) → (N,) in -1.5 … 1. The weight of the aspect term takes no gradient. Where ``eps`` stands
    decides the last digits: in the union, in the squared diagonal and in that weight.
    """
    a, b = cxcywh_to_xyxy(a_cxcywh), cxcywh_to_xyxy(b_cxcywh)
    overlap = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    intersection = overlap.clamp_min(0).prod(-1)
    a_size, b_size = a_cxcywh[:, 2:], b_cxcywh[:, 2:]
    union = a_size.prod(-1) + b_size.prod(-1) - intersection + eps
    iou = intersection / union
    enclosing = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    diagonal = enclosing.square().sum(-1) + eps
    distance = (a_cxcywh[:, :2] - b_cxcywh[:, :2]).square().sum(-1)
    angle = torch.atan(b_size[:, 0] / b_size[:, 1]) - torch.atan(a_size[:, 0] / a_size[:, 1])
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - (distance / diagonal + aspect * weight)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp_min(0).prod(-1)
