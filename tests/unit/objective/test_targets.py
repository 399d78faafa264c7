"""Padding matches to a few sizes."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from hvdyolo.objective import targets as module
from hvdyolo.objective.assign import LevelMatches
from hvdyolo.objective.targets import move_targets, pad_matches
from hvdyolo.utils.errors import InternalError


def matches(*cells: int, keeps: list[bool] | None = None) -> LevelMatches:
    """Matches whose other values follow from the cell."""
    base = np.array(cells, np.float32).reshape(-1, 1)
    return LevelMatches(
        cell=np.array(cells, np.int64),
        box_cxcywh=base + np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
        anchor_wh=base + np.array([[0.5, 0.6]], np.float32),
        label=np.array(cells, np.int64) % 7,
        keeps_objectness=np.array([True] * len(cells) if keeps is None else keeps, np.bool_),
    )


def test_parts_are_joined_in_order_level_by_level() -> None:
    parts = [(matches(3, 9), matches(1)), (matches(20, 21, keeps=[False, True]), matches())]
    fine, coarse = pad_matches(parts, [100, 50])
    assert fine.cell[:4].tolist() == [3, 9, 20, 21]
    assert fine.label[:4].tolist() == [3, 2, 6, 0]
    assert torch.allclose(fine.box_cxcywh[2], torch.tensor([20.1, 20.2, 20.3, 20.4]))
    assert torch.allclose(fine.anchor_wh[3], torch.tensor([21.5, 21.6]))
    assert fine.valid.tolist() == [1] * 4 + [0] * 60
    # Neither padding nor the match that does not keep its cell sets an objectness: slot 100 is past the end.
    assert fine.objectness_cell.tolist() == [3, 9, 100, 21] + [100] * 60
    assert coarse.objectness_cell.tolist() == [1] + [50] * 63


def test_padding_is_harmless() -> None:
    (level,) = pad_matches([(matches(3),)], [100])
    assert level.cell[1:].eq(0).all()
    assert (level.box_cxcywh[1:, 2:] > 0).all()
    assert (level.anchor_wh[1:] > 0).all()
    assert level.label[1:].eq(0).all()


@pytest.mark.parametrize(("count", "size"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 256)])
def test_sizes_are_powers_of_two(count: int, size: int) -> None:
    (level,) = pad_matches([(matches(*range(count)),)], [1000])
    for name in ("cell", "box_cxcywh", "anchor_wh", "label", "objectness_cell", "valid"):
        assert len(getattr(level, name)) == size
    assert level.valid.sum() == count
    assert (level.cell.dtype, level.label.dtype, level.objectness_cell.dtype) == (torch.int64,) * 3
    assert level.box_cxcywh.dtype == torch.float32


def test_absurd_numbers_are_an_error_not_a_cut() -> None:
    with patch.object(module, "_MOST", 128):
        pad_matches([(matches(*range(128)),)], [1000])
        with pytest.raises(InternalError, match="129 matches"):
            pad_matches([(matches(*range(129)),)], [1000])


def test_moving_to_a_device_keeps_everything() -> None:
    (level,) = pad_matches([(matches(3, 4),)], [100])
    (moved,) = move_targets([level], torch.device("meta"))
    assert moved.cell.device.type == "meta"
    assert moved.valid.shape == level.valid.shape
