"""Operations of AutoAugment by hand, and boxes that go with their objects."""

import numpy as np
import pytest
from drawn_objects import RESAMPLINGS, bounds, renderer_of
from PIL import Image

from hvdyolo.data.autoaugment import apply_policy, change_boxes, change_picture
from hvdyolo.data.autoaugment_operations import COLOURS, MOVES, MOVES_IN_BOXES
from hvdyolo.data.autoaugment_policies import POLICIES, SubPolicy
from hvdyolo.data.objects import Objects
from hvdyolo.data.parameters import PolicyDraw
from hvdyolo.data.placement import LEAST_AREA, LEAST_SIDE
from hvdyolo.data.render import renderer
from hvdyolo.ops.letterbox import FILL

SIZE = 128
BOX = (40, 30, 90, 70)
WARP = renderer("triangle").warp
ONLY_BOXES = [*MOVES_IN_BOXES, "Flip_Only_BBoxes", "Equalize_Only_BBoxes", "Cutout_Only_BBoxes"]
IN_PICTURES = [*MOVES, *COLOURS, "Cutout", "BBox_Cutout"]


class Draws:
    """A generator of given numbers, and of their last one from there on."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def _next(self) -> float:
        return self.numbers.pop(0) if len(self.numbers) > 1 else self.numbers[0]

    def random(self, count: int | None = None) -> float | np.ndarray:
        return self._next() if count is None else np.array([self._next() for _ in range(count)])

    def integers(self, most: int) -> int:
        return int(self._next() * most)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def drawn(box: tuple[float, ...] = BOX) -> tuple[np.ndarray, Objects]:
    """Black, with a red and blue object."""
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    left, top, right, bottom = map(int, box)
    pixels[top:bottom, left:right] = 255, 0, 255
    return pixels, Objects(np.array([4], dtype=np.float32), np.array([box], dtype=np.float64))


def shows(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0].astype(int) - pixels[..., 1] > 127


def test_every_operation_of_every_policy_is_known() -> None:
    for policy in POLICIES.values():
        for name, probability, magnitude in (step for sub_policy in policy for step in sub_policy):
            assert name in (ONLY_BOXES if name.endswith("_Only_BBoxes") else IN_PICTURES)
            assert 0 <= probability <= 1
            assert 0 <= magnitude <= 10


def test_policies_have_the_published_sizes() -> None:
    assert {name: len(policy) for name, policy in POLICIES.items()} == {"v0": 5, "v1": 20, "v2": 15, "v3": 15}
    assert {len(sub_policy) for name in ("v0", "v1", "v3") for sub_policy in POLICIES[name]} == {2}


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("Solarize", 0.5, [0, 100, 127, 127, 0]),  # from 128 on: 255 less it
        ("SolarizeAdd", 0.5, [55, 155, 182, 128, 255]),  # below 128: 55 more
        ("Posterize", 0.5, [0, 64, 64, 128, 192]),  # two bits are left
        ("Posterize", 0.2, [0, 0, 0, 128, 128]),  # at least one
        ("Brightness", 0.0, [0, 10, 13, 13, 26]),
        ("Brightness", 1.0, [0, 190, 241, 243, 255]),
        ("Brightness", 0.5, [0, 100, 127, 128, 255]),
        ("AutoContrast", 0.2, [0, 100, 127, 128, 255]),
        ("Color", 1.0, [0, 100, 127, 128, 255]),  # grey has no colour
    ],
)
def test_colours_by_hand(name: str, strength: float, expected: list[int]) -> None:
    grey = np.array([[0, 100, 127, 128, 255]], dtype=np.uint8)[..., None].repeat(3, axis=2)
    found = np.asarray(COLOURS[name](Image.fromarray(grey), strength))
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Sharpness"])
def test_enhancements_weaken_below_half_strength_and_sharpen_above(name: str) -> None:
    image = Image.fromarray(noise())
    spreads = [np.asarray(COLOURS[name](image, strength), dtype=float).std() for strength in (0.2, 0.5, 0.8)]
    assert spreads[0] < spreads[1] < spreads[2]
    np.testing.assert_array_equal(np.asarray(COLOURS[name](image, 0.5)), noise())


@pytest.mark.parametrize("name", COLOURS)
def test_colours_move_nothing(name: str) -> None:
    pixels, objects = noise(), drawn()[1]
    found = change_picture(name, 0.9, pixels, objects, WARP, Draws(0.0))
    assert found is objects
    assert not np.array_equal(pixels, noise()) or name == "AutoContrast"


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        # 250 pixels of 640 are 50 of 128.
        ("TranslateX_BBox", 0.4, (60, 30, 110, 70)),
        ("TranslateX_BBox", -0.4, (20, 30, 70, 70)),
        ("TranslateY_BBox", 0.4, (40, 50, 90, 90)),
        ("TranslateY_BBox", -1.0, (40, 0, 90, 20)),
        # x grows by 0.3 y.
        ("ShearX_BBox", 1.0, (40 + 9, 30, 90 + 21, 70)),
        ("ShearX_BBox", -1.0, (40 - 21, 30, 90 - 9, 70)),
        ("ShearY_BBox", 1.0, (40, 30 + 12, 90, 70 + 27)),
        ("Rotate_BBox", 0.0, BOX),
    ],
)
def test_moves_by_hand(name: str, strength: float, expected: tuple[int, ...]) -> None:
    pixels, objects = drawn()
    sign = 0.0 if strength >= 0 else 0.9
    found = change_picture(name, abs(strength), pixels, objects, WARP, Draws(sign))
    np.testing.assert_allclose(found.boxes_xyxy[0], expected, atol=1e-9)
    assert found.classes.tolist() == [4]
    np.testing.assert_allclose(bounds(shows(pixels)), expected, atol=1.01)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_boxes_bound_what_has_moved(resampling: str, name: str) -> None:
    warp = renderer_of(resampling).warp
    random = np.random.default_rng(len(name))
    kept = dropped = 0
    for _ in range(60):
        left, top = random.uniform(0, 110, 2).astype(int)
        box = (left, top, min(left + random.integers(4, 60), SIZE), min(top + random.integers(4, 60), SIZE))
        pixels, objects = drawn(box)
        moved = change_picture(name, float(random.random()), pixels, objects, warp, random)
        found = bounds(shows(pixels))
        if len(moved.boxes_xyxy) == 0:
            dropped += 1
            if found is not None:
                sides = found[2:] - found[:2]
                area = (box[2] - box[0]) * (box[3] - box[1])
                assert sides.min() <= LEAST_SIDE + 1 or np.maximum(sides - 2, 0).prod() <= LEAST_AREA * area
            continue
        kept += 1
        (now,) = moved.boxes_xyxy
        assert (now >= 0).all()
        assert (now <= SIZE).all()
        if (now > 0.5).all() and (now < SIZE - 0.5).all():
            np.testing.assert_allclose(now, found, atol=1.6)
        elif found is not None:
            assert (now[:2] <= found[:2] + 1.01).all()
            assert (now[2:] >= found[2:] - 1.01).all()
    assert kept > 20
    assert dropped > 0 or name in ("Rotate_BBox", "ShearX_BBox", "ShearY_BBox")


def test_cutout_greys_a_square_of_the_published_size() -> None:
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    # 2 x 100 pixels of 640 are 40 of 128.
    change_picture("Cutout", 1.0, pixels, drawn()[1], WARP, Draws(0.5))
    assert bounds(pixels[..., 0] == FILL).tolist() == [44, 44, 84, 84]
    assert (pixels[44:84, 44:84] == FILL).all()
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    change_picture("Cutout", 0.5, pixels, drawn()[1], WARP, Draws(0.0))  # around a corner
    assert bounds(pixels[..., 0] == FILL).tolist() == [0, 0, 10, 10]


def test_box_cutout_greys_a_part_of_one_box() -> None:
    pixels, objects = drawn((20, 20, 60, 100))
    found = change_picture("BBox_Cutout", 1.0, pixels, objects, WARP, Draws(0.5))
    # Three quarters of its sides around its middle.
    assert bounds(pixels[..., 1] == FILL).tolist() == [25, 30, 55, 90]
    assert found is objects
    none = Objects.joined([])
    change_picture("BBox_Cutout", 1.0, pixels, none, WARP, Draws(0.5))


@pytest.mark.parametrize("name", ONLY_BOXES)
def test_only_pixels_inside_boxes_change(name: str) -> None:
    pixels, objects = noise(), drawn()[1]
    change_boxes(name, 1.0, 0.8, pixels, objects, WARP, Draws(0.3))
    changed = (pixels != noise()).any(-1)
    inside = np.zeros_like(changed)
    inside[30:70, 40:90] = True
    assert changed[inside].mean() > 0.05
    assert not changed[~inside].any()
    assert objects.boxes_xyxy.tolist() == [list(BOX)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 120 pixels of 640 are 24 of 128.
        ("TranslateY_Only_BBoxes", lambda inside: (inside[:-24], slice(24, None))),
        ("Flip_Only_BBoxes", lambda inside: (inside[:, ::-1], slice(None))),
    ],
)
def test_changes_inside_boxes_by_hand(name: str, expected) -> None:
    pixels, objects = noise(), drawn()[1]
    change_boxes(name, 1.0, 1.0, pixels, objects, WARP, Draws(0.3))
    left, top, right, bottom = BOX
    content, rows = expected(noise()[top:bottom, left:right])
    np.testing.assert_array_equal(pixels[top:bottom, left:right][rows], content)


def test_cutout_inside_a_box_is_smaller_and_around_a_point_of_the_box() -> None:
    pixels, objects = drawn()
    # 2 x 50 pixels of 640 are 20 of 128, around the middle of the box.
    change_boxes("Cutout_Only_BBoxes", 1.0, 1.0, pixels, objects, WARP, Draws(0.3, 0.5))
    assert bounds(pixels[..., 1] == FILL).tolist() == [55, 40, 75, 60]


def test_all_pixels_that_a_box_touches_change() -> None:
    pixels = noise()
    objects = Objects(np.zeros(1, dtype=np.float32), np.array([[40.6, 30.6, 89.4, 69.4]]))
    change_boxes("Flip_Only_BBoxes", 1.0, 1.0, pixels, objects, WARP, Draws(0.3))
    np.testing.assert_array_equal(pixels[30:70, 40:90], noise()[30:70, 40:90][:, ::-1])


def test_a_box_is_changed_with_a_third_of_the_probability() -> None:
    objects = Objects(np.zeros(1, dtype=np.float32), np.array([BOX], dtype=np.float64))
    random = np.random.default_rng(0)
    changed = 0
    for _ in range(600):
        pixels = noise()
        change_boxes("Flip_Only_BBoxes", 0.6, 1.0, pixels, objects, WARP, random)
        changed += not np.array_equal(pixels, noise())
    assert changed / 600 == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_follows_from_its_seed(policy: str) -> None:
    different = set()
    for seed in range(40):
        pixels, objects = drawn()
        again, _ = drawn()
        found = apply_policy(pixels, objects, PolicyDraw(policy, seed), WARP)
        repeated = apply_policy(again, objects, PolicyDraw(policy, seed), WARP)
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(found.boxes_xyxy, repeated.boxes_xyxy)
        different.add(pixels.tobytes())
    assert len(different) > 5


def moves_of(sub_policy: SubPolicy) -> list[str]:
    """Names of the operations that may move the picture."""
    return [
        name for name, probability, strength in sub_policy if name in MOVES and probability * strength > 0
    ]


MOVING = dict.fromkeys(
    sub_policy for policy in POLICIES.values() for sub_policy in policy if moves_of(sub_policy)
)


@pytest.mark.parametrize(
    "sub_policy", MOVING, ids=lambda sub_policy: "-".join(name for name, _, _ in sub_policy)
)
def test_a_policy_moves_boxes_with_their_objects(
    sub_policy: SubPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, "v0", (sub_policy,))
    # No move of any policy, nor two of one, takes a part of it out of the picture.
    pixels, objects = drawn((58, 44, 84, 66))
    area = 26 * 22
    bounded_once = len(moves_of(sub_policy)) == 1
    cut = any("Cutout" in name for name, _, _ in sub_policy)
    moved = 0
    for seed in range(40):
        after = pixels.copy()
        found = apply_policy(after, objects, PolicyDraw("v0", seed), WARP)
        assert found.classes.tolist() == [4]
        (box,) = found.boxes_xyxy
        shown = stands_out(after)
        seen = bounds(shown)
        if seen is None:  # a patch is over it, or its colour has become that of the rest
            continue
        assert (box[:2] <= seen[:2] + 1.01).all(), (seed, box, seen)
        assert (box[2:] >= seen[2:] - 1.01).all(), (seed, box, seen)
        if shown.sum() < 0.98 * area:  # moves keep areas: more than a tip of it is under a patch
            continue
        # What is bounded twice is so more loosely, but around the same middle.
        np.testing.assert_allclose(box[:2] + box[2:], seen[:2] + seen[2:], atol=3.2, err_msg=f"seed {seed}")
        if bounded_once and not cut:
            np.testing.assert_allclose(box, seen, atol=1.6, err_msg=f"seed {seed}")
        else:
            assert (box[2:] - box[:2] < 1.8 * (seen[2:] - seen[:2])).all(), (seed, box, seen)
        moved += bool((abs(seen - bounds(shows(pixels))) > 2).any())
    assert moved > 0


def stands_out(pixels: np.ndarray) -> np.ndarray:
    """Like :func:`shows`, whatever has been done to colours: all else has no more red than green."""
    difference = pixels[..., 0].astype(int) - pixels[..., 1]
    return difference > max(difference.max() / 2, 20)


def test_moves_one_after_the_other_keep_bounding_their_object() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        pixels, objects = drawn()
        for name in ("Rotate_BBox", "ShearX_BBox"):
            objects = change_picture(name, 1.0, pixels, objects, WARP, random)
        found = bounds(shows(pixels))
        (box,) = objects.boxes_xyxy
        assert found is not None
        assert (box[:2] <= found[:2] + 1.01).all()
        assert (box[2:] >= found[2:] - 1.01).all()


def test_an_operation_that_there_is_not_is_a_bug() -> None:
    pixels, objects = drawn()
    with pytest.raises(ValueError, match="no operation Melt"):
        change_picture("Melt", 1.0, pixels, objects, WARP, Draws(0.0))
    with pytest.raises(ValueError, match="no operation Melt_Only_BBoxes"):
        change_boxes("Melt_Only_BBoxes", 1.0, 1.0, pixels, objects, WARP, Draws(0.0))
