"""Matches as tensors of a few fixed sizes, so that the loss has no data-dependent shape."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from hvdyolo.objective.assign import LevelMatches
from hvdyolo.ops.tensor_lists import move_together
from hvdyolo.utils.errors import InternalError

_LEAST = 64
_MOST = 1 << 22


@dataclass(frozen=True)
class LevelTargets:
    """A level's matches, padded to P places.

    Attributes:
        cell: (P,) int64, index into the level flattened as (B, anchors, H, W); 0 in padding.
        box_cxcywh: (P, 4) in cells, the centre less its cell's corner.
        anchor_wh: (P, 2) in cells.
        label: (P,) int64.
        objectness_cell: (P,) int64: ``cell``, or one past the level's last cell for matches that do not set
            its objectness.
        valid: (P,) 1 for matches, 0 for padding.
    """

    cell: Tensor
    box_cxcywh: Tensor
    anchor_wh: Tensor
    label: Tensor
    objectness_cell: Tensor
    valid: Tensor


def move_targets(targets: Sequence[LevelTargets], device: torch.device) -> list[LevelTargets]:
    """The same on ``device``, without waiting for what that is still computing."""
    if device.type == "cpu":
        return list(targets)
    names = [field.name for field in fields(LevelTargets)]
    moved = iter(move_together([getattr(level, name) for level in targets for name in names], device))
    return [LevelTargets(*(next(moved) for _ in names)) for _ in targets]


def pad_matches(
    parts: Sequence[tuple[LevelMatches, ...]], cells_per_level: Sequence[int]
) -> tuple[LevelTargets, ...]:
    """Join the matches of consecutive images and pad each level to a power of two, at least 64.

    Args:
        parts: matches a level, of each part of the batch.
        cells_per_level: number of (image, anchor, row, column) cells of the batch, a level.

    Raises:
        InternalError: there are more matches than any real batch has.
    """
    return tuple(
        _pad_level([part[level] for part in parts], cells) for level, cells in enumerate(cells_per_level)
    )


def _pad_level(parts: Sequence[LevelMatches], cells: int) -> LevelTargets:
    count = sum(len(part.cell) for part in parts)
    size = max(_LEAST, 1 << (count - 1).bit_length() if count else 0)
    if size > _MOST:
        raise InternalError(f"{count} matches at one level are more than the {_MOST} a batch may have.")
    padding = size - count

    def join(name: str, fill: float) -> Tensor:
        values = np.concatenate([getattr(part, name) for part in parts])
        widths = [(0, padding)] + [(0, 0)] * (values.ndim - 1)
        return torch.from_numpy(np.pad(values, widths, constant_values=fill))

    cell = join("cell", 0)
    return LevelTargets(
        cell=cell,
        # Padding is a unit box on a unit anchor: its terms are finite, and multiplied by 0.
        box_cxcywh=join("box_cxcywh", 1),
        anchor_wh=join("anchor_wh", 1),
        label=join("label", 0),
        objectness_cell=torch.where(join("keeps_objectness", 0), cell, cells),
        valid=(torch.arange(size) < count).float(),
    )
