"""COCO average precision of a model on a packed split, over all ranks."""

import numpy as np
import torch

from hvdyolo.config import EvaluationConfig, LoaderConfig
from hvdyolo.data.evaluation_loader import EvaluationBatch, EvaluationLoader
from hvdyolo.data.format import CROWD
from hvdyolo.data.reader import PackedSplit
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.agreement import on_first_rank
from hvdyolo.engine.preemption import StopRequest
from hvdyolo.metrics.average_precision import (
    CocoScores,
    ScoredImage,
    average_precision,
    match_images,
)
from hvdyolo.models.build import DetectionModel
from hvdyolo.models.fuse import fuse_batch_norms
from hvdyolo.ops.nms import Detections, select_detections
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.utils.errors import Preempted


def evaluate(
    model: DetectionModel,
    split: PackedSplit,
    comm: Communicator,
    device: torch.device,
    settings: EvaluationConfig,
    loader: LoaderConfig,
    beacon: Beacon,
    step: int = 0,
    stop: StopRequest | None = None,
) -> CocoScores:
    """Scores of ``model`` on ``split``, the same on every rank.

    Each rank detects on its share of the images and matches there; only the matches travel.

    Raises:
        Preempted: a rank found ``stop`` requested before it was through with its share. All ranks raise it.
    """
    fused = fuse_batch_norms(model).to(device).eval()
    images: list[ScoredImage] = []
    stopped = False
    with EvaluationLoader(
        split,
        loader,
        image_size=settings.image_size or model.image_size,
        batch=settings.batch,
        rank=comm.world.rank,
        size=comm.world.size,
        multiple=model.size_multiple if settings.rectangular else None,
    ) as batches:
        for batch in batches:
            if stopped := stop is not None and stop.requested:
                break
            beacon.beat("evaluate", step)
            with torch.inference_mode():
                predictions = fused(prepare_images(batch.images.to(device)))[0]
                found = select_detections(
                    predictions, settings.confidence, settings.iou, settings.max_boxes, multi_label=True
                )
            images += _scored_images(split, batch, found)
    beacon.beat("match", step)
    matches = None if stopped else match_images(images, len(split.names))
    beacon.beat("gather matches", step, waits=True)
    shares = [share for share in comm.gather_objects("evaluation", matches) if share is not None]
    if len(shares) < comm.world.size:
        raise Preempted("Stopped on request during an evaluation.")
    return on_first_rank(
        comm,
        "average precision",
        lambda: average_precision((match for share in shares for match in share), split.names),
    )


def _scored_images(split: PackedSplit, batch: EvaluationBatch, found: list[Detections]) -> list[ScoredImage]:
    """Predictions and truth of a batch in pixels of the source images, where COCO measures areas."""
    images = []
    for sample, letterbox, true_labels, flags, detections in zip(
        batch.samples, batch.letterboxes, batch.labels, batch.flags, found, strict=True
    ):
        source_height, source_width = split.source_size(sample)
        stored_height, stored_width = split.size(sample)
        to_source = np.array([source_width / stored_width, source_height / stored_height] * 2)
        boxes = letterbox.to_image(detections.boxes_xyxy.numpy().astype(np.float64))
        limits = np.array([stored_width, stored_height] * 2)
        labels = true_labels.astype(np.float64)
        centres, half_sizes = labels[:, 1:3], labels[:, 3:5] / 2
        true_boxes = np.hstack([centres - half_sizes, centres + half_sizes])
        images.append(
            ScoredImage(
                image=sample,
                true_boxes_xyxy=true_boxes * np.array([source_width, source_height] * 2),
                true_labels=labels[:, 0].astype(np.int64),
                crowd=(flags & CROWD).astype(bool),
                boxes_xyxy=boxes.clip(0, limits) * to_source,
                scores=detections.scores.numpy().astype(np.float64),
                labels=detections.labels.numpy(),
            )
        )
    return images
