"""YOLOv5's loss of one batch by itself: for comparing with published values, and for users' own loops."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.config import LossConfig
from hvdyolo.objective.assign import Assigner
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import move_targets, pad_matches


class Model(Protocol):
    """What the loss needs to know of a network, and how it is called."""

    @property
    def strides(self) -> tuple[int, ...]: ...

    @property
    def anchors_pixels(self) -> Tensor: ...

    def __call__(self, images: Tensor) -> Any: ...


def yolov5_loss(
    model: Model,
    images: Tensor,
    targets: Tensor,
    settings: LossConfig | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of one batch, normalised by its own images and matches.

    Args:
        model: in whichever mode it is; batch norm does what that mode says.
        images: (B, 3, H, W) in 0..1. The longer side is the size that the gain of objectness is for.
        targets: (n, 6): number of the image in the batch, class, cx, cy, w, h in 0..1.
        settings: gains and thresholds as published by default.
        class_weights: (C,) in place of ``settings.class_weights``, which may ask for a split's numbers.

    Raises:
        ValueError: targets are not what they should be.

    Returns:
        Scalars ``box``, ``obj`` and ``cls``, gains included, and ``total``, their sum times B.
    """
    settings = LossConfig() if settings is None else settings
    batch, _, height, width = images.shape
    levels = _raw_levels(model(images))
    # Through float32, for numpy has no bfloat16.
    anchors = model.anchors_pixels.float().cpu().numpy()
    assigner = Assigner(model.strides, anchors, settings.anchor_threshold)
    rows = _checked(targets.detach().float().cpu().numpy(), batch, levels[0].shape[-1] - 5)
    labels = [rows[rows[:, 0] == image, 1:] for image in range(batch)]
    matches = assigner(labels, height, width)
    padded = pad_matches([matches], [level[..., 0].numel() for level in levels])
    counts = StepCounts(
        images=torch.tensor(float(batch), device=images.device),
        matches=torch.tensor([float(len(level.cell)) for level in matches], device=images.device),
    )
    terms = detection_loss(
        levels,
        move_targets(padded, images.device),
        torch.ones(batch, device=images.device),
        counts,
        settings,
        max(height, width),
        class_weights,
    )
    return {
        "box": terms.box,
        "obj": terms.objectness,
        "cls": terms.classification,
        "total": terms.total,
    }


def _checked(rows: NDArray[np.float32], images: int, classes: int) -> NDArray[np.float32]:
    """``rows`` of targets; any else would be left out, or spoil the loss, in silence."""
    if rows.ndim != 2 or rows.shape[1] != 6:
        raise ValueError(f"Targets are (n, 6): image, class, cx, cy, w, h; not {rows.shape}.")
    for column, most, name in ((0, images, "images"), (1, classes, "classes")):
        numbers = rows[:, column]
        if not ((numbers >= 0) & (numbers < most) & (numbers % 1 == 0)).all():
            raise ValueError(f"Targets have numbers of {name} beyond 0 … {most - 1}.")
    if not np.isfinite(rows).all():
        raise ValueError("Targets are not finite.")
    return rows


def _raw_levels(output: Any) -> list[Tensor]:
    """In evaluation mode the raw levels come second, after the decoded boxes."""
    levels: list[Tensor] = output[1] if isinstance(output, tuple) else output
    return levels
