"""Boxes go where their objects' pixels go, whatever is done to a sample."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from drawn_objects import (
    RESAMPLINGS,
    DrawnImages,
    bounds,
    labels_by_class,
    parameters,
    picture,
    renderer_of,
    seen,
)

from hvdyolo.data.augment import augment
from hvdyolo.data.autoaugment_policies import POLICIES
from hvdyolo.data.parameters import AugmentParameters, Mixup, Patch, PictureParameters, PolicyDraw
from hvdyolo.data.placement import GREATEST_ASPECT, LEAST_AREA, LEAST_SIDE, Homography
from hvdyolo.ops.letterbox import FILL

SIZE = 128
CASES = 6

LAYOUTS = {"one": 1, "four": 4, "nine": 9}
# Ranges in which each of these is drawn; the rest is as in the default settings.
MOTIONS: dict[str, dict[str, float]] = {
    "zoom": {},
    "rotation": {"rotation": 45.0},
    "shear": {"shear_x": 20.0, "shear_y": 20.0},
    "perspective": {"perspective_x": 0.25, "perspective_y": 0.25},
    "everything": {
        "rotation": 180.0,
        "shear_x": 10.0,
        "shear_y": 10.0,
        "perspective_x": 0.2,
        "perspective_y": 0.2,
    },
}


def drawn_picture(
    random: np.random.Generator, count: int, motion: dict[str, float], first: int = 0
) -> PictureParameters:
    return PictureParameters(
        sources=tuple(range(first, first + count)),
        meeting=tuple(0.5 + random.random(2)),
        homography=Homography(
            zoom=random.uniform(0.5, 1.5),
            centre_x=random.uniform(0.4, 0.6),
            centre_y=random.uniform(0.4, 0.6),
            **{name: random.uniform(-most, most) for name, most in motion.items()},
        ),
    )


def assert_boxes_fit(
    drawn: AugmentParameters, resampling: str, weights: dict[int, float], upright: bool
) -> tuple[int, int]:
    """Check every object; returns how many have a label and how many have none.

    ``weights`` are the objects and their shares of the pixels' colours. ``upright``: edges stay edges.
    """
    labels = labels_by_class(drawn, resampling, SIZE)
    assert labels.keys() <= weights.keys()
    for shown, weight in weights.items():
        found = bounds(seen(drawn, resampling, SIZE, shown, threshold=weight / 2))
        homography = drawn.picture.homography
        if drawn.mixup is not None and shown in drawn.mixup.picture.sources:
            homography = drawn.mixup.picture.homography
        if shown not in labels:
            assert_not_worth_learning(found, shown, homography)
            continue
        box = labels[shown]
        assert (box >= -1e-4).all()
        assert (box <= SIZE + 1e-4).all()
        if found is None:
            # The bounds of what is turned may reach into the picture where it does not itself.
            assert not upright, f"object {shown} has the box {box} and is not there"
            continue
        assert (box[:2] <= found[:2] + 1.01).all(), (shown, box, found)
        assert (box[2:] >= found[2:] - 1.01).all(), (shown, box, found)
        # What is turned and cut by an edge of the picture reaches out further than it shows.
        whole = (box > 0.5).all() and (box < SIZE - 0.5).all()
        if upright or whole:
            np.testing.assert_allclose(box, found, atol=1.6, err_msg=f"object {shown}")
    return len(labels), len(weights) - len(labels)


def assert_not_worth_learning(found: np.ndarray | None, shown: int, homography: Homography) -> None:
    if found is None:
        return
    images = DrawnImages()
    left, top, right, bottom = images.box(shown)
    scale = homography.zoom * SIZE / max(images.size(shown))
    area = (right - left) * (bottom - top) * scale**2
    sides = found[2:] - found[:2]
    small = sides.min() <= LEAST_SIDE + 1
    little = np.maximum(sides - 2, 0).prod() <= LEAST_AREA * area
    thin = sides.max() >= GREATEST_ASPECT * (sides.min() - 1)
    assert small or little or thin, f"object {shown} shows in {found} and has no label"


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_boxes_bound_their_objects(resampling: str, layout: str, motion: str) -> None:
    random = np.random.default_rng(len(layout) + 10 * len(motion))
    labelled = dropped = 0
    for case in range(CASES):
        drawn = parameters(
            drawn_picture(random, LAYOUTS[layout], MOTIONS[motion], first=10 * case),
            flip_left_right=case % 2 == 1,
            flip_up_down=case // 2 % 2 == 1,
        )
        objects = dict.fromkeys(drawn.picture.sources, 1.0)
        counts = assert_boxes_fit(drawn, resampling, objects, upright=motion == "zoom")
        labelled, dropped = labelled + counts[0], dropped + counts[1]
    assert labelled >= CASES / 2
    # Or nothing has been seen of what is out of sight.
    assert dropped > 0 or layout == "one"


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_both_pictures_of_a_mixup_bring_their_boxes(resampling: str) -> None:
    random = np.random.default_rng(5)
    labelled = [0, 0]
    for case in range(CASES):
        first, second = (drawn_picture(random, 4, {}, first=4 * part) for part in range(2))
        share = random.uniform(0.35, 0.65)
        drawn = parameters(first, mixup=Mixup(second, share), flip_up_down=case % 2 == 1)
        weights = dict.fromkeys(first.sources, 1 - share) | dict.fromkeys(second.sources, share)
        assert_boxes_fit(drawn, resampling, weights, upright=True)
        for label in labels_by_class(drawn, resampling, SIZE):
            labelled[label in second.sources] += 1
    assert min(labelled) > CASES


def test_mixup_blends_by_share() -> None:
    second = picture((1,))
    drawn = parameters(picture((0,)), mixup=Mixup(second, 0.25))
    output = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    # The first image is all black and as wide as the output; what is around it is grey.
    augment(DrawnImages(), drawn, renderer_of("triangle"), output)
    assert output[64, 64].tolist() == [0, 0, 0]
    assert abs(int(output[64, 2, 0]) - 0.25 * FILL) <= 1
    assert abs(int(output[2, 64, 0]) - 0.75 * FILL) <= 1
    assert output[2, 2].tolist() == [FILL] * 3


def test_flips_reverse_rows_and_columns() -> None:
    plain = parameters(picture((2,)))
    output, flipped = np.empty((2, SIZE, SIZE, 3), dtype=np.uint8)
    source, rendering = DrawnImages(shown=2), renderer_of("triangle")
    label = augment(source, plain, rendering, output).labels[0]
    down = augment(source, replace(plain, flip_up_down=True), rendering, flipped)
    np.testing.assert_array_equal(flipped, output[::-1])
    np.testing.assert_allclose(down.labels[0], [2, label[1], 1 - label[2], *label[3:]], atol=1e-6)
    assert not down.flip
    left = augment(source, replace(plain, flip_left_right=True), rendering, flipped)
    np.testing.assert_array_equal(flipped, output)  # pixels are mirrored later
    np.testing.assert_allclose(left.labels[0], [2, 1 - label[1], *label[2:]], atol=1e-6)
    assert left.flip


def test_patches_are_laid_over_the_mixed_picture_and_turned_with_it() -> None:
    patch = Patch(centre=(0.5, 0.1), sides=(0.1, 0.1), colour=(1, 2, 3))
    drawn = parameters(picture((0,)), mixup=Mixup(picture((1,)), 0.5), patches=(patch,), flip_up_down=True)
    output = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    augment(DrawnImages(), drawn, renderer_of("triangle"), output)
    assert output[-13, 64].tolist() == [1, 2, 3]
    assert output[13, 64].tolist() != [1, 2, 3]


def test_a_policy_moves_boxes_before_they_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "v3", ((("TranslateY_BBox", 1.0, 4),),))
    plain = parameters(picture((2,)))
    for seed, flipped in itertools.product(range(4), (False, True)):
        drawn = replace(plain, policy=PolicyDraw("v3", seed), flip_up_down=flipped)
        assert assert_boxes_fit(drawn, "triangle", {2: 1.0}, upright=True) == (1, 0)
        moved = labels_by_class(drawn, "triangle", SIZE)[2] - labels_by_class(plain, "triangle", SIZE)[2]
        assert abs(moved).max() > 10


@pytest.mark.parametrize("count", [1, 4, 9])
def test_an_image_that_is_missing_is_grey_and_brings_no_label(count: int) -> None:
    drawn = parameters(picture(tuple(range(count))))
    output = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    missing = DrawnImages(missing=frozenset(range(count)))
    labels = augment(missing, drawn, renderer_of("triangle"), output).labels
    assert labels.shape == (0, 5)
    assert labels.dtype == np.float32
    assert (output == FILL).all()


def test_what_is_out_of_sight_is_not_decoded() -> None:
    asked = []

    class Watched(DrawnImages):
        def image(self, index: int, rows: int) -> np.ndarray | None:
            asked.append((index, rows))
            return super().image(index, rows)

    output = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    # The middle one of nine fills the picture, at twice its size and in the middle of the canvas.
    drawn = parameters(picture((2,) * 4 + (7,) + (2,) * 4, zoom=2.0))
    augment(Watched(), drawn, renderer_of("triangle"), output)
    assert [index for index, _ in asked] == [7]
    asked.clear()
    augment(
        Watched(), parameters(picture((0, 1, 2, 3), (1.5, 1.5), zoom=1.5)), renderer_of("triangle"), output
    )
    assert [index for index, _ in asked] == [0]
