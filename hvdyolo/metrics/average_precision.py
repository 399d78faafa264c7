"""COCO average precision by pycocotools, with the matching done where the images are.

pycocotools works in two stages: ``evaluate`` matches boxes image by image, ``accumulate`` ranks all
matches together. The first is nearly all of the time and needs no other image, so each rank matches its
own images; the matches, a few numbers a box, are merged in image order and accumulated once. The result
has the same bits as one process that does everything.
"""

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Rows of COCOeval.stats, fixed by its summarize().
_STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class ScoredImage:
    """Truth and predictions of one image, boxes as x1, y1, x2, y2 in pixels of the source image.

    Attributes:
        image: the image's number, unique over all ranks.
        true_boxes_xyxy: (n, 4).
        true_labels: (n,) class numbers.
        crowd: (n,) true where the box is a crowd: matching it is neither right nor wrong.
        boxes_xyxy: (m, 4).
        scores: (m,).
        labels: (m,) class numbers.
    """

    image: int
    true_boxes_xyxy: NDArray[np.float64]
    true_labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImageMatches:
    """What ``accumulate`` needs of one image: pycocotools' record for each class and area range."""

    image: int
    instances: int
    records: tuple[Any, ...]


@dataclass(frozen=True)
class CocoScores:
    """COCO's average precisions, 0..1, or -1 where there is nothing to score.

    ``classes`` maps a class name to its AP and AP50.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    images: int
    instances: int
    classes: Mapping[str, Mapping[str, float]]


def match_images(images: Sequence[ScoredImage], classes: int) -> list[ImageMatches]:
    """The first stage: match predictions to truth in each of ``images``."""
    if not images:
        return []
    numbers = sorted(image.image for image in images)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        scorer = COCOeval(_truth(images, classes), _predictions(images, classes), "bbox")
        scorer.params.imgIds = numbers
        scorer.evaluate()
    # evalImgs runs over classes, then area ranges, then images.
    by_image = np.array(scorer.evalImgs, dtype=object).reshape(-1, len(numbers))
    instances = {image.image: int((~image.crowd).sum()) for image in images}
    return [
        ImageMatches(number, instances[number], tuple(by_image[:, column]))
        for column, number in enumerate(numbers)
    ]


def average_precision(matches: Iterable[ImageMatches], names: Sequence[str]) -> CocoScores:
    """The second stage: rank the matches of all images, in any order, and average precision."""
    ordered = sorted(matches, key=lambda match: match.image)
    scorer = COCOeval(iouType="bbox")
    scorer.params.imgIds = [match.image for match in ordered]
    scorer.params.catIds = list(range(len(names)))
    # accumulate() refuses parameters other than those it believes evaluate() ran with.
    scorer._paramsEval = copy.deepcopy(scorer.params)
    records = [match.records for match in ordered]
    scorer.evalImgs = [record for row in zip(*records, strict=True) for record in row]
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.accumulate()
        scorer.summarize()
    statistics = {name: float(value) for name, value in zip(_STATISTICS, scorer.stats, strict=False)}
    # precision: IoU thresholds .5 … .95, recalls, classes, areas (first: all), boxes (last: 100).
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    return CocoScores(
        **statistics,
        images=len(ordered),
        instances=sum(match.instances for match in ordered),
        classes={
            name: {
                "ap": _mean(precision[:, :, number]),
                "ap50": _mean(precision[0, :, number]),
            }
            for number, name in enumerate(names)
        },
    )


def _mean(precision: NDArray[np.float64]) -> float:
    """Mean over what is defined; -1 for a class without instances, as pycocotools has it."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0


def _truth(images: Sequence[ScoredImage], classes: int) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image in images:
        for box, label, crowd in zip(image.true_boxes_xyxy, image.true_labels, image.crowd, strict=True):
            annotations.append(
                _annotation(len(annotations), image.image, box, label) | {"iscrowd": int(crowd)}
            )
    return _coco(images, annotations, classes)


def _predictions(images: Sequence[ScoredImage], classes: int) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image in images:
        for box, score, label in zip(image.boxes_xyxy, image.scores, image.labels, strict=True):
            annotations.append(
                _annotation(len(annotations), image.image, box, label) | {"score": float(score)}
            )
    return _coco(images, annotations, classes)


def _annotation(index: int, image: int, box: NDArray[np.float64], label: np.int64) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    width, height = x2 - x1, y2 - y1
    return {
        # From 1: pycocotools marks "no match" by 0.
        "id": index + 1,
        "image_id": image,
        "category_id": int(label),
        "bbox": [x1, y1, width, height],
        "area": width * height,
    }


def _coco(images: Sequence[ScoredImage], annotations: list[dict[str, Any]], classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image.image} for image in images],
        "categories": [{"id": number} for number in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
