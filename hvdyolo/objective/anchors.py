"""How well anchors take boxes, and anchors fitted to them.

An anchor takes a box if neither side differs by the threshold or more, as the assignment has it. As
published, anchors are fitted by k-means and then refined by small random changes. Here the means are of
logarithms, because what counts are factors: means of pixels crowd where the large boxes are
(docs/decisions.md).
"""

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.float32]
"""(n, 2) widths and heights, pixels; above 0."""
Points = NDArray[np.float64]
"""(n, 2) their logarithms."""

_STARTS = 8  # of k-means, which may end with two means in one cluster
_LLOYD_STEPS = 30
_GENERATIONS = 1000
_CHANGED = 0.5  # of an anchor's sides in a generation
_CHANGE = 0.1  # standard deviation of the logarithm of a side's change


def likeness(sizes: Sizes, anchors: Sizes) -> NDArray[np.float32]:
    """(n,) how like each box its best anchor is: 1 / the larger factor by which a side differs, 0 … 1."""
    best = np.zeros(len(sizes), dtype=np.float32)
    widths, heights = (np.ascontiguousarray(side, dtype=np.float32) for side in sizes.T)
    # Anchor by anchor and side by side: all at once takes ten times as long.
    for width, height in anchors.astype(np.float32):
        like = np.minimum(widths / width, width / widths)
        like = np.minimum(like, np.minimum(heights / height, height / heights))
        np.maximum(best, like, out=best)
    return best


def best_possible_recall(sizes: Sizes, anchors: Sizes, threshold: float) -> float:
    """The share of boxes that an anchor takes; 1 if there are none."""
    return float((likeness(sizes, anchors) > 1 / threshold).mean()) if len(sizes) else 1.0


def fitness(sizes: Sizes, anchors: Sizes, threshold: float) -> float:
    """The mean likeness of boxes and their anchors, 0 for a box that none takes."""
    like = likeness(sizes, anchors)
    return float(np.where(like > 1 / threshold, like, 0).mean(dtype=np.float64))


def fit_anchors(sizes: Sizes, count: int, threshold: float, generator: np.random.Generator) -> Sizes:
    """(count, 2) anchors for boxes, at least as many as there are anchors, by area."""
    starts = (_k_means(sizes, count, generator) for _ in range(_STARTS))
    fittest = max(starts, key=lambda anchors: fitness(sizes, anchors, threshold))
    anchors = _refine(fittest, sizes, threshold, generator)
    by_area: Sizes = anchors[anchors.prod(1).argsort(kind="stable")]
    return by_area


def _k_means(sizes: Sizes, count: int, generator: np.random.Generator) -> Sizes:
    """Geometric means of ``count`` clusters."""
    points = np.log(sizes.astype(np.float64))
    means = _spread(points, count, generator)
    for _ in range(_LLOYD_STEPS):
        nearest = _squared_distances(points, means).argmin(1)
        members = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, axis, count) for axis in points.T], 1)
        # A cluster that has lost its points stays where it was.
        moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], means)
        if np.array_equal(moved, means):
            break
        means = moved
    return np.exp(means).astype(np.float32)


def _spread(points: Points, count: int, generator: np.random.Generator) -> Points:
    """Points to start from, each drawn in proportion to its squared distance from the others (k-means++)."""
    means = [points[generator.integers(len(points))]]
    for _ in range(count - 1):
        distances = _squared_distances(points, np.array(means)).min(1)
        reached = distances.cumsum()
        # Where all points are means already, any will do.
        place = int(reached.searchsorted(generator.random() * reached[-1], side="right"))
        means.append(points[min(place, len(points) - 1)])
    return np.array(means)


def _squared_distances(points: Points, means: Points) -> NDArray[np.float64]:
    """(n, k), by way of products: arrays of all differences take several times as long."""
    distances: NDArray[np.float64] = (
        np.square(points).sum(1)[:, None] - 2 * points @ means.T + np.square(means).sum(1)
    )
    return distances.clip(min=0)


def _refine(anchors: Sizes, sizes: Sizes, threshold: float, generator: np.random.Generator) -> Sizes:
    """Change random sides by random factors and keep what is fitter, generation by generation."""
    best = fitness(sizes, anchors, threshold)
    for _ in range(_GENERATIONS):
        changed = generator.random(anchors.shape) < _CHANGED
        factors = np.exp(_CHANGE * generator.standard_normal(anchors.shape))
        mutant = (anchors * np.where(changed, factors, 1)).astype(np.float32)
        fit = fitness(sizes, mutant, threshold)
        if fit > best:
            anchors, best = mutant, fit
    return anchors
