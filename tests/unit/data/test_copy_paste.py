"""Objects once more, mirrored: where they may go, which pixels they bring, and that boxes bound them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drawn_objects import RESAMPLINGS, DrawnImages, bounds, parameters, picture, renderer_of
from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.data.augment import augment
from hvdyolo.data.copy_paste import covered, fill, paste_mirrored
from hvdyolo.data.outlines import Outlines
from hvdyolo.data.parameters import AugmentParameters, Mixup, PasteDraw

HEIGHT, WIDTH = 50, 100
ALWAYS = PasteDraw(1.0, seed=3)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def label(number: int, left: float, top: float, right: float, bottom: float) -> list[float]:
    """Of a box in pixels."""
    return [
        number,
        (left + right) / 2 / WIDTH,
        (top + bottom) / 2 / HEIGHT,
        (right - left) / WIDTH,
        (bottom - top) / HEIGHT,
    ]


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """Of points in pixels."""
    return (np.array(points) / (WIDTH, HEIGHT)).astype(np.float32)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def labels(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 5)


def pasted_classes(found: np.ndarray, outlines: Outlines) -> list[int]:
    _, after = paste_mirrored(noise(), found, outlines, ALWAYS, 0)
    np.testing.assert_array_equal(after[: len(found)], found)
    return [int(row[0]) for row in after[len(found) :]]


def test_shares_of_boxes_that_are_covered_are_those_counted_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 0, 30, 10], [0, 8, 40, 12], [-1, -1, 0, 0]])
    # 10 x 10, 5 x 5 of 100, beside it, 10 x 2 of 160, a corner in common.
    assert covered(boxes, np.array([0, 0, 10, 10])).tolist() == [1, 0.25, 0, 0.125, 0]


# The object is 10 … 30; mirrored 70 … 90, all of it from 10 to 30 downwards: 20 x 20 pixels.
OBJECT, PLACE = (10, 10, 30, 30), (70, 10, 90, 30)


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        # Of the other box, 20 x 20, so much is covered:
        ((85, 10, 105, 30), True),  # 5 of 20 columns: 25 %
        ((84, 10, 104, 30), False),  # 6 of 20: 30 %, which is not less
        ((83, 10, 103, 30), False),  # 7 of 20: 35 %
        ((80, 20, 100, 40), True),  # a quarter
        ((79, 19, 99, 39), False),  # 11 x 11 of 400: 30.25 %
        ((75, 12, 80, 14), False),  # all of a small one
        # It is the other box that counts: nearly all of the pasted object may lie in a large one.
        ((60, 0, 100, 50), True),  # 400 of 2000: 20 %
        ((62, 5, 92, 35), False),  # 400 of 900: 44 %
        ((90, 10, 99, 30), True),  # touched
    ],
)
def test_an_object_is_pasted_where_it_covers_less_than_30_percent_of_any_box(
    other: tuple[int, int, int, int], fits: bool
) -> None:
    found = labels(label(1, *OBJECT), label(2, *other))
    assert pasted_classes(found, [[rectangle(*OBJECT)], []]) == ([1] if fits else [])


def test_an_object_in_the_middle_would_cover_itself() -> None:
    # 30 wide, 10 of it in common with its mirror image: 33 %; and 9 of 30 less a bit.
    for left, wanted in ((25, []), (24.2, [1])):
        box = left, 10, left + 30, 30
        assert pasted_classes(labels(label(1, *box)), [[rectangle(*box)]]) == wanted


def test_what_was_pasted_before_is_in_the_way_too() -> None:
    below, above = (10, 10, 30, 30), (12, 12, 32, 32)
    found = labels(label(1, *below), label(2, *above))
    assert pasted_classes(found, [[rectangle(*below)], [rectangle(*above)]]) == [1]
    assert pasted_classes(found, [[], [rectangle(*above)]]) == [2]


def test_an_object_with_a_box_alone_is_never_pasted() -> None:
    image, found = noise(), labels(label(1, *OBJECT))
    assert paste_mirrored(image, found, [[]], ALWAYS, 0) == (image, found)


def test_pixels_of_the_object_are_mirrored_and_no_other_is_changed() -> None:
    image = noise()
    before = image.copy()
    triangle = polygon((10, 10), (30, 10), (10, 30))
    found = labels(label(7, *OBJECT))
    after, after_labels = paste_mirrored(image, found, [[triangle]], ALWAYS, 0)
    np.testing.assert_array_equal(image, before)
    assert after_labels.tolist() == [pytest.approx(row) for row in (label(7, *OBJECT), label(7, *PLACE))]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    # Distance of a pixel's middle from the slanted side; those that it crosses are the object's too.
    inside = (columns >= 10) & (rows >= 10) & (columns + rows + 1 <= 40.01)
    near = (columns >= 10) & (rows >= 10) & (columns + rows + 1 <= 42.01)
    mirrored = before[:, ::-1]
    np.testing.assert_array_equal(after[inside[:, ::-1]], mirrored[inside[:, ::-1]])
    np.testing.assert_array_equal(after[~near[:, ::-1]], before[~near[:, ::-1]])
    assert inside.sum() > 190


def test_an_outline_may_have_several_parts_and_reach_outside() -> None:
    image = noise()
    box = (0, 10, 30, 30)
    parts = [rectangle(-20, 10, 5, 30), rectangle(20, 10, 30, 30)]
    after, _ = paste_mirrored(image, labels(label(1, *box)), [parts], ALWAYS, 0)
    changed = (after != image).any(2)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[10:30, 70:80] = expected[10:30, 95:100] = True
    # The pixel at the end of a part belongs to it; the box ends at 30.
    expected[10:30, 94] = True
    assert not changed[~expected].any()
    assert changed[expected].mean() > 0.99  # noise may be equal
    np.testing.assert_array_equal(after[expected], image[:, ::-1][expected])


def test_a_wrong_outline_changes_nothing_outside_of_the_box() -> None:
    image = noise()
    after, _ = paste_mirrored(image, labels(label(1, *OBJECT)), [[rectangle(0, 0, 100, 50)]], ALWAYS, 0)
    changed = (after != image).any(2)
    left, top, right, bottom = PLACE
    changed[top:bottom, left:right] = False
    assert not changed.any()


def test_an_object_whose_outline_is_elsewhere_is_not_pasted() -> None:
    assert pasted_classes(labels(label(1, *OBJECT)), [[rectangle(60, 40, 70, 50)]]) == []


def test_pasted_objects_show_what_the_image_showed_at_first() -> None:
    """A corner of the second lies where the first is pasted, and is not what it takes along."""
    image = noise()
    first, second = (5, 10, 15, 20), (80, 18, 94, 38)
    outlines = [[rectangle(*first)], [rectangle(*second)]]
    after, found = paste_mirrored(image, labels(label(1, *first), label(2, *second)), outlines, ALWAYS, 0)
    assert len(found) == 4
    np.testing.assert_array_equal(after[10:20, 85:95], image[10:20, 5:15][:, ::-1])
    np.testing.assert_array_equal(after[18:38, 6:20], image[18:38, 80:94][:, ::-1])


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=3, max_size=8),
)
def test_a_mask_is_the_polygon_give_or_take_a_pixel_at_its_border(points: list[tuple[float, float]]) -> None:
    corners = np.array(points)
    mask = fill([(corners / (64, 64)).astype(np.float32)], (64, 64), (0, 0, 64, 64))
    found = bounds(mask)
    assert found is not None
    assert (np.abs(found[:2] - corners.min(0)) <= 1.01).all()
    assert (np.abs(found[2:] - corners.max(0)) <= 1.01).all()


def test_a_mask_has_the_area_of_its_circle() -> None:
    for radius in (5, 20, 30):
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        points = np.stack([np.cos(angle), np.sin(angle)], 1) * radius + 32
        area = fill([(points / 64).astype(np.float32)], (64, 64), (0, 0, 64, 64)).sum()
        # Its border adds half a pixel about.
        assert np.pi * radius**2 <= area <= np.pi * (radius + 1) ** 2


def test_each_object_has_its_own_chance() -> None:
    found = labels(*(label(row, 5, 5 * row, 15, 5 * row + 4) for row in range(10)))
    outlines = [[rectangle(5, 5 * row, 15, 5 * row + 4)] for row in range(10)]
    draws = [
        tuple(paste_mirrored(noise(), found, outlines, PasteDraw(0.3, seed), place)[1][10:, 0])
        for seed in range(40)
        for place in range(9)
    ]
    counts = np.bincount(np.concatenate(draws).astype(int), minlength=10)
    # Of 360 each, mean 108, standard deviation 8.7.
    assert (np.abs(counts - 108) < 35).all()
    assert len(set(draws)) > 200
    assert draws[0] == tuple(paste_mirrored(noise(), found, outlines, PasteDraw(0.3, 0), 0)[1][10:, 0])


class MirroredImages(DrawnImages):
    """Objects in the left 40 % of their images, so that all can be pasted."""

    def box(self, index: int) -> tuple[int, int, int, int]:
        height, width = self.size(index)
        x, y, w, h = np.random.default_rng(index).random(4)
        sides = int(width * (0.15 + 0.15 * w)), int(height * (0.2 + 0.4 * h))
        left, top = int(x * (0.4 * width - sides[0])), int(y * (height - sides[1]))
        return left, top, left + sides[0], top + sides[1]


MOTIONS: dict[str, dict[str, float]] = {
    "as it is": {},
    "enlarged": {"zoom": 1.3, "centre_x": 0.4},
    "turned": {"rotation": 25.0, "shear_x": 5.0, "perspective_x": 0.1},
}


def pasted(drawn: AugmentParameters) -> AugmentParameters:
    mixup = drawn.mixup
    if mixup is not None:
        mixup = replace(mixup, picture=replace(mixup.picture, pastes=ALWAYS))
    return replace(drawn, picture=replace(drawn.picture, pastes=ALWAYS), mixup=mixup)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_boxes_bound_pasted_objects_in_whatever_picture(resampling: str, count: int, motion: str) -> None:
    """Each box of an object bounds one of its pictures, and no pixel is outside of both."""
    size = 160
    zoom = 1.0 if count == 1 else 0.55
    plain = parameters(
        picture(tuple(range(count)), **{"zoom": zoom} | MOTIONS[motion]), flip_left_right=count == 4
    )
    checked = 0
    for shown in range(count):
        output = np.empty((size, size, 3), dtype=np.uint8)
        sample = augment(MirroredImages(shown), pasted(plain), renderer_of(resampling), output)
        image = output[:, ::-1] if sample.flip else output
        mask = image[..., 0].astype(int) - image[..., 1] > 127
        own = sample.labels[sample.labels[:, 0] == shown][:, 1:]
        boxes = np.concatenate([own[:, :2] - own[:, 2:] / 2, own[:, :2] + own[:, 2:] / 2], 1) * size
        near = np.zeros((len(boxes), size, size), dtype=bool)
        for box, region in zip(boxes, near, strict=True):
            first, last = np.floor(box[:2] - 1.01).astype(int).clip(0), np.ceil(box[2:] + 1.01).astype(int)
            region[first[1] : last[1], first[0] : last[0]] = True
        # What has no box is cut off so far that nothing is to be learnt from it.
        assert len(own) < 2 or not (mask & ~near.any(0)).any()
        for box, region in zip(boxes, near, strict=True):
            whole = (box > 0.5).all() and (box < size - 0.5).all()
            alone = near.sum(0)[region].max() == 1
            found = bounds(mask & region)
            # The bounds of what is turned may reach into the picture where it does not itself.
            if alone and ((whole and found is not None) or motion != "turned"):
                np.testing.assert_allclose(box, found, atol=1.7, err_msg=f"object {shown}")
                checked += 1
    assert checked >= 2


def test_all_labels_are_there_once_more() -> None:
    drawn = parameters(picture((0, 1, 2, 3), zoom=0.5), mixup=Mixup(picture((5,)), 0.5))
    output = np.empty((640, 640, 3), dtype=np.uint8)
    plain = augment(MirroredImages(), drawn, renderer_of("triangle"), output).labels
    both = augment(MirroredImages(), pasted(drawn), renderer_of("triangle"), output).labels
    assert sorted(plain[:, 0]) == [0, 1, 2, 3, 5]
    assert sorted(both[:, 0]) == [0, 0, 1, 1, 2, 2, 3, 3, 5, 5]


def test_outlines_of_what_does_not_show_are_not_read() -> None:
    class Watched(MirroredImages):
        def outlines(self, index: int) -> Any:
            assert index == 0
            return super().outlines(index)

    drawn = parameters(picture((0, 1, 2, 3), (1.5, 1.5), zoom=1.5))
    output = np.empty((128, 128, 3), dtype=np.uint8)
    augment(Watched(), pasted(drawn), renderer_of("triangle"), output)


def test_without_copy_paste_no_outline_is_read() -> None:
    class Without(DrawnImages):
        def outlines(self, index: int) -> Any:
            raise AssertionError

    output = np.empty((128, 128, 3), dtype=np.uint8)
    augment(Without(), parameters(picture((0, 1, 2, 3))), renderer_of("triangle"), output)
