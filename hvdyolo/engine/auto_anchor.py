"""Anchors for the boxes that training will see: looked at before the first epoch, and fitted where they miss.

Each rank reads the boxes of its share of the samples. All ranks have all that are looked at, at most
:data:`MOST_BOXES`; the first one fits, and the others take what it found. So the anchors follow from the
data and the seed, whatever the number of ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hvdyolo.config import Config
from hvdyolo.data.box_sizes import draw_box_sizes
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.engine.agreement import on_first_rank
from hvdyolo.engine.journal import LOGGER
from hvdyolo.engine.transfer import Transfer
from hvdyolo.models.build import DetectionModel
from hvdyolo.objective.anchors import best_possible_recall, fit_anchors

MOST_BOXES = 1 << 16
"""Drawn from larger splits: the recall of so many is right to a thousandth, and fitting takes seconds."""
_ENOUGH = 0.98  # best possible recall above which the published method leaves anchors as they are


@dataclass(frozen=True)
class AnchorCheck:
    """What was found of a model's anchors.

    Attributes:
        boxes: that were looked at.
        recall_before: share of them that the anchors took.
        recall: share that the anchors take which the model now has.
        fitted: these are others than before.
    """

    boxes: int
    recall_before: float
    recall: float
    fitted: bool


def check_anchors(
    config: Config, model: DetectionModel, transfer: Transfer | None, split: PackedSplit, comm: Communicator
) -> AnchorCheck | None:
    """Look at the anchors of a model that is to begin with ``split``, if settings or description ask for it.

    ``transfer`` is what it has from other weights: their anchors are no stand-ins, whatever the description
    says.
    """
    own = transfer is None or transfer.keeps_anchors
    stand_ins = own and isinstance(model.description["anchors"], int)
    if not (config.model.auto_anchor or stand_ins):
        return None
    threshold, seed = config.loss.anchor_threshold, config.train.seed
    return fit_model_anchors(model, split, comm, threshold=threshold, seed=seed, stand_ins=stand_ins)


def fit_model_anchors(
    model: DetectionModel,
    split: PackedSplit,
    comm: Communicator,
    *,
    threshold: float,
    seed: int,
    stand_ins: bool,
) -> AnchorCheck:
    """Give ``model`` anchors fitted to ``split`` if its own take too few boxes and these take more.

    ``stand_ins`` are replaced however many they take.
    """
    sizes = _gather_sizes(split, comm, model.image_size, seed)
    before = model.anchors_pixels.cpu().numpy()

    def fit() -> tuple[NDArray[np.float32] | None, AnchorCheck]:
        recall = best_possible_recall(sizes, before.reshape(-1, 2), threshold)
        kept = AnchorCheck(len(sizes), recall, recall, fitted=False)
        count = before.shape[0] * before.shape[1]
        if len(sizes) < count or (recall > _ENOUGH and not stand_ins):
            return None, kept
        fitted = fit_anchors(sizes, count, threshold, sample_generator(seed, 0, 0, Purpose.ANCHORS))
        after = best_possible_recall(sizes, fitted, threshold)
        if after <= recall and not stand_ins:
            return None, kept
        return _by_level(fitted, model.strides), AnchorCheck(len(sizes), recall, after, fitted=True)

    anchors, check = on_first_rank(comm, "anchors", fit)
    if anchors is not None:
        model.set_anchors(torch.from_numpy(anchors))
    elif stand_ins:
        LOGGER.warning(
            "%d boxes are too few to fit anchors to; squares of 2 to 8 strides stand in", len(sizes)
        )
    _tell(check, model)
    return check


def _gather_sizes(split: PackedSplit, comm: Communicator, image_size: int, seed: int) -> NDArray[np.float32]:
    """(n, 2) sizes of boxes over all ranks, in the order of samples."""
    rank, size, samples = comm.world.rank, comm.world.size, len(split)
    share = range(rank * samples // size, (rank + 1) * samples // size)
    mine = draw_box_sizes(split, share, image_size, MOST_BOXES, seed)
    return np.concatenate(comm.gather_objects("box sizes", mine))


def _by_level(anchors: NDArray[np.float32], strides: tuple[int, ...]) -> NDArray[np.float32]:
    """(levels, anchors, 2): the smallest for the level of the smallest stride, and so on."""
    levels = anchors.reshape(len(strides), -1, 2)
    places = np.argsort(np.argsort(strides, kind="stable"), kind="stable")
    return levels[places]


def _tell(check: AnchorCheck, model: DetectionModel) -> None:
    if check.fitted:
        pixels = (
            f"{width:.0f}x{height:.0f}" for width, height in model.anchors_pixels.flatten(0, 1).tolist()
        )
        LOGGER.info(
            "anchors fitted to %d boxes take %.2f %% of them, those before %.2f %%: %s",
            check.boxes, 100 * check.recall, 100 * check.recall_before, " ".join(pixels),
        )  # fmt: skip
    else:
        LOGGER.info("the anchors take %.2f %% of %d boxes and stay", 100 * check.recall, check.boxes)
