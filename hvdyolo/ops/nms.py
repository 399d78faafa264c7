"""From dense predictions to a picture's detections."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvdyolo.ops.boxes import cxcywh_to_xyxy
from hvdyolo.ops.iou import pairwise_iou

# Candidates that suppression looks at; what is beyond is recorded as capped. By count, never by time, so
# that the same input gives the same boxes on a busy machine.
_MOST_CANDIDATES = 30_000
# Boxes that are compared with those kept so far, and with each other, at once: fits a core's cache.
_BLOCK = 256


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


def nms(boxes_xyxy: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Greedy suppression: keep a box unless a better kept one overlaps it by more than ``iou``.

    Args:
        boxes_xyxy: (N, 4).
        scores: (N,); of equal scores the lower index is better.
        iou: overlap above which the worse box goes.

    Returns:
        (n,) indices of the kept boxes, best first.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[_suppress(boxes_xyxy[order], torch.zeros_like(order), iou, len(order))]


def select_detections(
    predictions: Tensor, confidence: float, iou: float, max_boxes: int, multi_label: bool
) -> list[Detections]:
    """Detections of each picture of a batch, on the CPU.

    Args:
        predictions: (B, boxes, 5 + C): cx, cy, w, h in pixels, objectness and class probabilities.
        confidence: objectness, and then their product, must exceed it.
        iou: a box overlapping a better one of its class by more goes.
        max_boxes: the best so many are kept of a picture.
        multi_label: a box may carry every class above ``confidence``, or its best one only.
    """
    pictures = find_candidates(predictions, confidence)
    return [suppress(picture, confidence, iou, max_boxes, multi_label) for picture in pictures]


def find_candidates(predictions: Tensor, confidence: float) -> list[Tensor]:
    """Of each picture the (n, 5 + C) whose objectness is above ``confidence``, on the CPU, float32.

    What is left to do looks at its results again and again. On a GPU it would wait each time, for the result
    and then for the interpreter's lock: an H200 detected 300 images a second, whatever their size.
    """
    # Float32, because overlaps in half precision would be wrong in the second digit.
    if not predictions.is_cuda:
        return [picture[picture[:, 4] > confidence].float() for picture in predictions.unbind(0)]
    above = predictions[..., 4] > confidence
    counts = above.sum(1).tolist()
    return list(torch.split(predictions[above].float().cpu(), counts))


def suppress(picture: Tensor, confidence: float, iou: float, max_boxes: int, multi_label: bool) -> Detections:
    """Detections among a picture's candidates; arguments as of :func:`select_detections`."""
    class_scores = picture[:, 5:] * picture[:, 4:5]
    if multi_label:
        rows, labels = (class_scores > confidence).nonzero(as_tuple=True)
        scores = class_scores[rows, labels]
    else:
        scores, labels = class_scores.max(1)
        rows = (scores > confidence).nonzero().squeeze(1)
        scores, labels = scores[rows], labels[rows]
    best = _best(scores, _MOST_CANDIDATES)
    boxes, labels = cxcywh_to_xyxy(picture[rows[best], :4]), labels[best]
    # One more than is kept tells whether there were more.
    kept = _suppress(boxes, labels, iou, max_boxes + 1)
    capped = len(scores) > _MOST_CANDIDATES or len(kept) > max_boxes
    kept = kept[:max_boxes]
    return Detections(boxes[kept], scores[best[kept]], labels[kept], capped)


def _best(scores: Tensor, most: int) -> Tensor:
    """Indices of the ``most`` best scores, best first; of equal ones the lower index is better."""
    places = torch.arange(len(scores), device=scores.device)
    if len(scores) > most:
        # Half a million scores (80 classes, untrained weights) take ten times as long to sort as to divide.
        least = scores.kthvalue(len(scores) - most + 1).values
        places = (scores >= least).nonzero().squeeze(1)
    return places[torch.sort(scores[places], descending=True, stable=True).indices[:most]]


def _suppress(boxes_xyxy: Tensor, labels: Tensor, iou: float, most: int) -> Tensor:
    """Greedy suppression within classes, of boxes sorted best first: the first ``most`` kept, ascending.

    Block by block: what the boxes kept so far suppress goes, then what is left suppresses its own. What comes
    after the last box kept is never looked at.
    """
    kept = torch.arange(0, device=boxes_xyxy.device)
    for start in range(0, len(boxes_xyxy), _BLOCK):
        block = torch.arange(start, min(start + _BLOCK, len(boxes_xyxy)), device=boxes_xyxy.device)
        overlaps = _overlaps(boxes_xyxy, labels, block, kept, iou)
        block = block[~overlaps.any(1)]
        block = block[_keep_in_block(_overlaps(boxes_xyxy, labels, block, block, iou))]
        kept = torch.cat([kept, block])[:most]
        if len(kept) == most:
            break
    return kept


def _overlaps(boxes_xyxy: Tensor, labels: Tensor, a: Tensor, b: Tensor, iou: float) -> Tensor:
    """(len(a), len(b)): whether boxes of these indices overlap by more than ``iou`` and are of one class."""
    # Not by moving each class to a plane of its own: far from the origin, single precision loses the overlap.
    same = labels[a, None] == labels[None, b]
    return (pairwise_iou(boxes_xyxy[a], boxes_xyxy[b]) > iou) & same


def _keep_in_block(overlaps: Tensor) -> Tensor:
    """Greedy suppression given the overlaps of boxes sorted best first: (n,) true for those kept."""
    suppresses = overlaps.triu(1)
    # The greedy choice is the only fixed point of "kept unless a kept better one overlaps"; each turn settles
    # at least one more box, in practice a handful of turns settle all.
    keep = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    while True:
        refined = ~(suppresses & keep[:, None]).any(0)
        if refined.equal(keep):
            return keep
        keep = refined
