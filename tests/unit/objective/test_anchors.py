"""Recall and fitness of anchors by hand, and clusters that are found again."""

import numpy as np
import pytest

from hvdyolo.objective.anchors import best_possible_recall, fit_anchors, fitness, likeness
from hvdyolo.objective.assign import Assigner


def sizes(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, dtype=np.float32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


ANCHORS = sizes((10, 20), (100, 50))
BOXES = sizes(
    (10, 20),  # the first anchor: 1
    (20, 20),  # twice as wide: 1/2; of the second 5 times narrower
    (100, 200),  # 4 times higher than the second, 10 times than the first: 1/4, which is too much
    (400, 50),  # 4 times as wide as the second
    (99, 12.6),  # 3.97 times lower than the second: 0.252
    (1, 1),  # 20 times lower than the first
)


def test_likeness_is_one_over_the_larger_factor_of_the_best_anchor() -> None:
    np.testing.assert_allclose(likeness(BOXES, ANCHORS), [1, 0.5, 0.25, 0.25, 0.252, 0.05], rtol=1e-6)


def test_recall_and_fitness_of_six_boxes() -> None:
    assert best_possible_recall(BOXES, ANCHORS, 4.0) == pytest.approx(3 / 6)
    assert best_possible_recall(BOXES, ANCHORS, 4.1) == pytest.approx(5 / 6)
    assert best_possible_recall(BOXES, ANCHORS, 2.0) == pytest.approx(1 / 6)
    assert fitness(BOXES, ANCHORS, 4.0) == pytest.approx((1 + 0.5 + 0.252) / 6, rel=1e-6)
    assert best_possible_recall(BOXES[:0], ANCHORS, 4.0) == 1.0


def test_recall_is_what_the_assignment_takes() -> None:
    random = np.random.default_rng(3)
    boxes = np.exp(random.normal(3, 1.5, (300, 2))).clip(2, 600).astype(np.float32)
    labels = np.hstack([np.zeros((300, 1)), np.full((300, 2), 0.501), boxes / 640]).astype(np.float32)
    assigner = Assigner((8,), ANCHORS[None], 4.0)
    # One image each, so that a match tells whose it is.
    (level,) = assigner([row[None] for row in labels], 640, 640)
    taken = np.unique(level.cell // (2 * 80 * 80))
    assert best_possible_recall(boxes, ANCHORS, 4.0) == pytest.approx(len(taken) / 300)
    assert 50 < len(taken) < 250


@pytest.mark.parametrize("seed", [0, 8, 15])  # k-means begun once puts two means into one cluster at 8 and 15
def test_planted_clusters_are_found(seed: int) -> None:
    planted = sizes(
        (8, 12), (30, 10), (12, 40), (25, 60), (70, 30), (40, 200), (90, 100), (300, 120), (200, 400)
    )  # fmt: skip
    random = np.random.default_rng(seed)
    boxes = np.repeat(planted, 40, 0) * random.uniform(0.95, 1.05, (360, 2)).astype(np.float32)
    found = fit_anchors(boxes, 9, 4.0, generator(seed))
    areas = found.prod(1)
    assert (np.diff(areas) > 0).all()
    np.testing.assert_allclose(found, planted[planted.prod(1).argsort()], rtol=0.06)
    assert fitness(boxes, found, 4.0) > 0.96


def test_refinement_goes_where_means_do_not() -> None:
    """Seventy boxes of 10 pixels, thirty of 200: their mean takes neither, an anchor can take the many."""
    boxes = np.repeat(sizes((10, 10), (200, 200)), [70, 30], 0)
    mean = np.exp(np.log(boxes).mean(0))[None]  # 24.6
    assert best_possible_recall(boxes, mean, 2.4) == 0
    (found,) = fit_anchors(boxes, 1, 2.4, generator())
    np.testing.assert_allclose(found, 10, rtol=0.02)


def test_few_or_equal_boxes_make_anchors_too() -> None:
    same = fit_anchors(np.full((9, 2), 7, dtype=np.float32), 9, 4.0, generator())
    np.testing.assert_allclose(same, 7, rtol=1e-5)
    three = fit_anchors(sizes((5, 5), (50, 20), (200, 300)), 3, 4.0, generator())
    np.testing.assert_allclose(three, [[5, 5], [50, 20], [200, 300]], rtol=1e-5)


def test_the_seed_decides() -> None:
    boxes = np.exp(np.random.default_rng(1).normal(3, 1, (200, 2))).astype(np.float32)
    first = fit_anchors(boxes, 6, 4.0, generator(0))
    assert np.array_equal(first, fit_anchors(boxes, 6, 4.0, generator(0)))
    assert not np.array_equal(first, fit_anchors(boxes, 6, 4.0, generator(1)))
