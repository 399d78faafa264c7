"""From dense predictions to a picture's detections."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvdyolo.ops.boxes import cxcywh_to_xyxy
from hvdyolo.ops.iou import pairwise_iou

# Candidates that suppression looks at; what is beyond is recorded as capped. By count, never by time, so
# that the same input gives the same boxes on a busy machine.
_MOST_CANDIDATES = 30_000
# Rows of the overlap matrix at once: 1024 x 1024 floats fit a core's cache.
_BLOCK = 1024


@dataclass(frozen=True)
class Detections:
    """One picture's boxes, best first.

    Attributes:
        boxes_xyxy: (n, 4) float32, pixels of the input.
        scores: (n,) objectness times class probability.
        labels: (n,) int64 class numbers.
        capped: there were more boxes than could be kept or considered.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    capped: bool


def nms(boxes_xyxy: Tensor, scores: Tensor, iou: float, most: int | None = None) -> Tensor:
    """Greedy suppression: keep a box unless a better kept one overlaps it by more than ``iou``.

    Args:
        boxes_xyxy: (N, 4).
        scores: (N,); of equal scores the lower index is better.
        iou: overlap above which the worse box goes.
        most: stop once this many are kept.

    Returns:
        (n,) indices of the kept boxes, best first.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    candidates = boxes_xyxy[order]
    kept: list[Tensor] = []
    found = 0
    while len(order) and (most is None or found < most):
        block = _keep_in_block(candidates[:_BLOCK], iou)
        kept.append(order[:_BLOCK][block])
        found += len(block)
        winners = candidates[:_BLOCK][block]
        order, candidates = order[_BLOCK:], candidates[_BLOCK:]
        if len(order):
            free = ~(pairwise_iou(candidates, winners) > iou).any(1)
            order, candidates = order[free], candidates[free]
    result = torch.cat(kept) if kept else order
    return result if most is None else result[:most]


def select_detections(
    predictions: Tensor, confidence: float, iou: float, max_boxes: int, multi_label: bool
) -> list[Detections]:
    """Detections of each picture of a batch.

    Args:
        predictions: (B, boxes, 5 + C): cx, cy, w, h in pixels, objectness and class probabilities.
        confidence: objectness, and then their product, must exceed it.
        multi_label: a box may carry every class above ``confidence``, or its best one only.
    """
    return [_select(picture, confidence, iou, max_boxes, multi_label) for picture in predictions.unbind(0)]


def _select(picture: Tensor, confidence: float, iou: float, max_boxes: int, multi_label: bool) -> Detections:
    picture = picture[picture[:, 4] > confidence]
    class_scores = picture[:, 5:] * picture[:, 4:5]
    if multi_label:
        rows, labels = (class_scores > confidence).nonzero(as_tuple=True)
        scores = class_scores[rows, labels]
    else:
        scores, labels = class_scores.max(1)
        rows = (scores > confidence).nonzero().squeeze(1)
        scores, labels = scores[rows], labels[rows]
    best = torch.sort(scores, descending=True, stable=True).indices[:_MOST_CANDIDATES]
    boxes = cxcywh_to_xyxy(picture[rows[best], :4])
    scores, labels, considered = scores[best], labels[best], len(scores)
    # Boxes of different classes never meet if each class has a plane of its own.
    apart = labels[:, None] * (boxes.max() - boxes.min() + 1) if len(boxes) else 0.0
    # One more than is kept tells whether there were more.
    kept = nms(boxes + apart, scores, iou, max_boxes + 1)
    capped = considered > _MOST_CANDIDATES or len(kept) > max_boxes
    kept = kept[:max_boxes]
    return Detections(boxes[kept].float(), scores[kept].float(), labels[kept], capped)


def _keep_in_block(boxes_xyxy: Tensor, iou: float) -> Tensor:
    """Greedy suppression among boxes sorted best first: (n,) indices kept, ascending."""
    suppresses = (pairwise_iou(boxes_xyxy, boxes_xyxy) > iou).triu(1)
    # The greedy choice is the only fixed point of "kept unless a kept better one overlaps"; each turn settles
    # at least one more box, in practice a handful of turns settle all.
    keep = torch.ones(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    while True:
        refined = ~(suppresses & keep[:, None]).any(0)
        if refined.equal(keep):
            return keep.nonzero().squeeze(1)
        keep = refined
