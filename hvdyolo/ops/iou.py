"""Intersection over union, plain and complete."""

import math

import torch
from torch import Tensor

from hvdyolo.ops.boxes import cxcywh_to_xyxy


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(N, 4), (M, 4) → (N, M); 0 where both boxes are empty."""
    # Coordinate by coordinate and in place: four times as fast as on (N, M, 2) tensors.
    a_left, a_top, a_right, a_bottom = a_xyxy[:, None].unbind(-1)
    b_left, b_top, b_right, b_bottom = b_xyxy[None].unbind(-1)
    width = torch.minimum(a_right, b_right).sub_(torch.maximum(a_left, b_left)).clamp_min_(0)
    height = torch.minimum(a_bottom, b_bottom).sub_(torch.maximum(a_top, b_top)).clamp_min_(0)
    intersection = width.mul_(height)
    union = (_area(a_xyxy)[:, None] + _area(b_xyxy)[None]).sub_(intersection)
    return intersection.div_(union.clamp_min_(1e-30))


def complete_iou(a_cxcywh: Tensor, b_cxcywh: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU of pairs (arXiv 1911.08287): IoU less a distance and an aspect term.

    (N, 4), (N, 4) → (N,) in -1.5 … 1. The weight of the aspect term takes no gradient. Where ``eps`` stands
    decides the last digits: in the union, in the squared diagonal and in that weight.
    """
    a, b = cxcywh_to_xyxy(a_cxcywh), cxcywh_to_xyxy(b_cxcywh)
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0)
    # Not `prod`: its backward pass looks for zeros, and waits for the GPU to tell.
    intersection = overlap[:, 0] * overlap[:, 1]
    a_size, b_size = a_cxcywh[:, 2:], b_cxcywh[:, 2:]
    union = a_size[:, 0] * a_size[:, 1] + b_size[:, 0] * b_size[:, 1] - intersection + eps
    iou = intersection / union
    enclosing = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    diagonal = enclosing.square().sum(-1) + eps
    distance = (a_cxcywh[:, :2] - b_cxcywh[:, :2]).square().sum(-1)
    # A height that underflows, as in a training that diverges, would make its own gradient 0 x infinity.
    angle = torch.atan(b_size[:, 0] / b_size[:, 1]) - torch.atan(a_size[:, 0] / a_size[:, 1].clamp_min(eps))
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - (distance / diagonal + aspect * weight)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp_min(0).prod(-1)
