"""Anchors are fitted to the boxes of all ranks, and are those that one process would find."""

import torch

from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.engine import auto_anchor
from hvdyolo.engine.auto_anchor import fit_model_anchors
from hvdyolo.models.build import DetectionModel, build_model


def fitted(comm, split: PackedSplit) -> tuple[DetectionModel, auto_anchor.AnchorCheck]:
    torch.manual_seed(0)
    model = build_model("yolov5n-p2", len(split.names))
    model.image_size = 320
    return model, fit_model_anchors(model, split, comm, threshold=4.0, seed=3, stand_ins=True)


def test_ranks_have_the_anchors_of_one_process(comm, synthetic, monkeypatch) -> None:
    monkeypatch.setattr(auto_anchor, "MOST_BOXES", 60)  # a draw, too, is of the whole split
    split = PackedSplit(synthetic, "train")
    expected, alone = fitted(SingleProcess(), split)
    model, together = fitted(comm, split)
    assert together == alone
    assert 12 < together.boxes <= 60 < split.boxes
    assert model.anchors_pixels.equal(expected.anchors_pixels)
    comm.check_equal(model.state_dict())
