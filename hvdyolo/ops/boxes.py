"""Conversions between box layouts; the layout is in the name."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(…, 4) centre and size → (…, 4) corners."""
    centre, size = boxes[..., :2], boxes[..., 2:4]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(…, 4) corners → (…, 4) centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:4]
    return torch.cat([(low + high) / 2, high - low], -1)


def clip_xyxy(boxes: Tensor, height: float, width: float) -> Tensor:
    """(…, 4) corners moved into an image."""
    limits = boxes.new_tensor([width, height, width, height])
    return boxes.clamp_min(0).minimum(limits)
