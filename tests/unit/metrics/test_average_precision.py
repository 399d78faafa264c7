"""COCO average precision on cases small enough to compute by hand, and its independence of ranks."""

import numpy as np
import pytest

from hvdyolo.metrics.average_precision import (
    CocoScores,
    ScoredImage,
    average_precision,
    match_images,
)

NAMES = ("disc", "square")


def scored(
    image: int,
    truth: list[tuple[float, float, float, float, int]],
    predictions: list[tuple[float, float, float, float, int, float]],
    crowd: list[bool] | None = None,
) -> ScoredImage:
    true = np.array(truth, dtype=np.float64).reshape(-1, 5)
    predicted = np.array(predictions, dtype=np.float64).reshape(-1, 6)
    return ScoredImage(
        image=image,
        true_boxes_xyxy=true[:, :4],
        true_labels=true[:, 4].astype(np.int64),
        crowd=np.array(crowd if crowd is not None else [False] * len(true), dtype=bool),
        boxes_xyxy=predicted[:, :4],
        scores=predicted[:, 5],
        labels=predicted[:, 4].astype(np.int64),
    )


def score(*images: ScoredImage) -> CocoScores:
    return average_precision(match_images(images, len(NAMES)), NAMES)


def test_perfect_predictions_score_one() -> None:
    result = score(scored(0, [(0, 0, 50, 50, 0)], [(0, 0, 50, 50, 0, 0.9)]))
    assert result.ap == pytest.approx(1.0)
    assert result.classes["disc"] == {"ap": pytest.approx(1.0), "ap50": pytest.approx(1.0)}
    assert result.classes["square"]["ap"] == -1.0
    assert (result.images, result.instances) == (1, 1)


def test_a_box_of_iou_064_counts_at_the_three_lower_thresholds() -> None:
    # Same width, 64 of 100 rows: IoU 0.64, a match at 0.50, 0.55, 0.60 of the ten thresholds.
    result = score(scored(0, [(0, 0, 100, 100, 0)], [(0, 0, 100, 64, 0, 0.9)]))
    assert result.ap == pytest.approx(0.3)
    assert (result.ap50, result.ap75) == (pytest.approx(1.0), pytest.approx(0.0))


def test_half_the_truth_found_gives_the_recall_points_up_to_one_half() -> None:
    # Precision 1 at recalls 0, .01 … .50: 51 of the 101 points.
    result = score(
        scored(0, [(0, 0, 50, 50, 0)], [(0, 0, 50, 50, 0, 0.9)]), scored(1, [(0, 0, 50, 50, 0)], [])
    )
    assert result.ap50 == pytest.approx(51 / 101)


def test_a_better_scored_miss_halves_precision() -> None:
    result = score(scored(0, [(0, 0, 50, 50, 0)], [(100, 100, 150, 150, 0, 0.9), (0, 0, 50, 50, 0, 0.8)]))
    assert result.ap50 == pytest.approx(0.5)


def test_area_ranges_follow_the_box() -> None:
    # 20 x 20 is below 32 squared, 200 x 200 above 96 squared.
    result = score(scored(0, [(0, 0, 20, 20, 0), (50, 50, 250, 250, 0)], [(50, 50, 250, 250, 0, 0.9)]))
    assert (result.ap_small, result.ap_large) == (pytest.approx(0.0), pytest.approx(1.0))
    assert result.ap_medium == -1.0


def test_a_crowd_is_neither_truth_nor_miss() -> None:
    found = scored(
        0,
        [(0, 0, 50, 50, 0), (100, 100, 200, 200, 0)],
        [(0, 0, 50, 50, 0, 0.8), (110, 110, 150, 150, 0, 0.9)],
        crowd=[False, True],
    )
    result = score(found)
    assert result.ap50 == pytest.approx(1.0)
    assert result.instances == 1


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_give_the_bits_of_one_process(ranks: int) -> None:
    random = np.random.default_rng(7)
    images = []
    for number in range(23):
        corners = random.uniform(0, 300, (6, 2))
        true = np.hstack([corners, corners + random.uniform(5, 150, (6, 2))])
        labels = random.integers(0, 2, 6)
        moved = true + random.normal(0, 6, true.shape)
        # Scores on a coarse grid: ties between images are where order could show.
        scores = random.integers(1, 6, 6) / 5
        images.append(ScoredImage(number, true, labels, random.random(6) < 0.1, moved, scores, labels))
    whole = average_precision(match_images(images, 2), NAMES)
    shares = [match_images(images[rank::ranks], 2) for rank in range(ranks)]
    merged = average_precision([match for share in shares for match in share], NAMES)
    assert merged == whole
    assert 0.1 < whole.ap < 0.9
