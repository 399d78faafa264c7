"""What is random about a sample: each number has its place."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from hvdyolo.config import AugmentConfig
from hvdyolo.data.parameters import AugmentParameters, draw_parameters
from hvdyolo.data.random import Purpose, sample_generator

PARTNERS = range(1000, 2000)
STRONG = AugmentConfig(
    mosaic=0.5,
    mosaic_9=0.5,
    degrees=10.0,
    shear=5.0,
    perspective=0.1,
    mixup=0.5,
    copy_paste=0.5,
    cutout=0.5,
    flip_up_down=0.5,
    autoaugment="v0",
)


def draw(settings: AugmentConfig, position: int = 0) -> AugmentParameters:
    return draw_parameters(settings, 5, PARTNERS, sample_generator(3, 0, position, Purpose.AUGMENTATION))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every number of some parameters by its path."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        parts = [flat(content, f"{name}.{key}") for key, content in fields.items()]
        return {key: content for part in parts for key, content in part.items()}
    return {name: value}


# Which parameters each setting is allowed to change.
TOUCHES = {
    "mosaic": ({"mosaic": 1.0}, "sources"),
    "mosaic_9": ({"mosaic_9": 1.0}, "sources"),
    "degrees": ({"degrees": 20.0}, "rotation"),
    "translate": ({"translate": 0.2}, "centre_x centre_y"),
    "scale": ({"scale": 0.9}, "zoom"),
    "shear": ({"shear": 6.0}, "shear_x shear_y"),
    "perspective": ({"perspective": 0.2}, "perspective_x perspective_y"),
    "mixup": ({"mixup": 1.0}, "mixup"),
    "copy_paste": ({"copy_paste": 1.0}, "pastes"),
    "autoaugment": ({"autoaugment": "v2"}, "policy"),
    "cutout": ({"cutout": 1.0}, "patches"),
    "flip_up_down": ({"flip_up_down": 1.0}, "flip_up_down"),
    "flip_left_right": ({"flip_left_right": 1.0}, "flip_left_right"),
    "hue": ({"hue": 0.5}, "colour_gains"),
    "saturation": ({"saturation": 0.1}, "colour_gains"),
    "value": ({"value": 0.1}, "colour_gains"),
}


@pytest.mark.parametrize("setting", TOUCHES)
def test_a_setting_changes_its_own_parameters_and_nothing_else(setting: str) -> None:
    changes, own = TOUCHES[setting]
    changed = set()
    for position in range(40):
        before = flat(draw(STRONG, position))
        after = flat(draw(dataclasses.replace(STRONG, **changes), position))
        # Where a second picture is not there in both, its own parameters cannot be compared.
        common = before.keys() & after.keys()
        changed |= {name for name in common if before[name] != after[name]}
        changed |= {name for name in before.keys() ^ after.keys() if setting == "mixup"}
    own_names = own.split()
    assert changed, "the setting does nothing"
    assert all(any(part in own_names for part in name.split(".")) for name in changed), changed


def test_numbers_that_were_drawn_first_stay_first() -> None:
    draws = sample_generator(3, 0, 0, Purpose.AUGMENTATION).random(17)
    drawn = draw(AugmentConfig(degrees=10.0))
    assert drawn.picture.meeting == (0.5 + draws[1], 0.5 + draws[2])
    others = [1000 + int(1000 * draws[place]) for place in (3, 4, 5)]
    others.insert(int(4 * draws[6]), 5)
    assert drawn.picture.sources == tuple(others)
    assert drawn.picture.homography.rotation == pytest.approx(10 * (2 * draws[7] - 1))
    assert drawn.picture.homography.zoom == pytest.approx(1 + 0.5 * (2 * draws[8] - 1))
    assert drawn.picture.homography.centre_y == pytest.approx(0.5 + 0.1 * (2 * draws[12] - 1))
    assert drawn.colour_gains == pytest.approx(1 + (2 * draws[13:16] - 1) * [0.015, 0.7, 0.4])
    assert drawn.flip_left_right == (draws[16] < 0.5)


def test_by_default_there_is_only_what_the_low_preset_has() -> None:
    for position in range(50):
        drawn = draw(AugmentConfig(), position)
        assert len(drawn.picture.sources) == 4
        assert (drawn.mixup, drawn.policy, drawn.patches, drawn.flip_up_down) == (None, None, (), False)
        assert drawn.picture.pastes is None
        homography = drawn.picture.homography
        assert homography.scales_only
        assert 0.5 <= homography.zoom <= 1.5


def test_probabilities_are_those_that_were_set() -> None:
    settings = AugmentConfig(mosaic=0.8, mosaic_9=0.25, mixup=0.3, cutout=0.4, flip_up_down=0.1)
    drawn = [draw(settings, position) for position in range(4000)]
    counts = np.array([len(one.picture.sources) for one in drawn])
    found = {
        "one": (counts == 1).mean(),
        "four": (counts == 4).mean(),
        "nine": (counts == 9).mean(),
        "mixup": np.mean([one.mixup is not None for one in drawn]),
        "cutout": np.mean([bool(one.patches) for one in drawn]),
        "upside down": np.mean([one.flip_up_down for one in drawn]),
    }
    expected = {"one": 0.2, "four": 0.6, "nine": 0.2, "mixup": 0.3, "cutout": 0.4, "upside down": 0.1}
    assert found == pytest.approx(expected, abs=0.03)  # four standard deviations


def test_the_sample_is_anywhere_of_four_and_in_the_middle_of_nine() -> None:
    four = [draw(AugmentConfig(), position).picture.sources for position in range(60)]
    assert {sources.index(5) for sources in four} == {0, 1, 2, 3}
    for position in range(20):
        nine = draw(AugmentConfig(mosaic_9=1.0), position).picture.sources
        assert nine[4] == 5
        assert all(source in PARTNERS for source in nine[:4] + nine[5:])
        assert len(set(nine)) > 7  # each of the others is drawn by itself


def test_what_is_mixed_in_is_another_picture_drawn_alike() -> None:
    settings = AugmentConfig(mixup=1.0)
    for position in range(20):
        drawn = draw(settings, position)
        assert drawn.mixup is not None
        assert len(drawn.mixup.picture.sources) == 4
        assert not {*drawn.mixup.picture.sources} & {5}
        assert drawn.mixup.picture.homography != drawn.picture.homography
    shares = [draw(settings, position).mixup.share for position in range(2000)]
    # Beta(32, 32): mean 1/2, variance 1/4/65.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.006)
    assert np.std(shares) == pytest.approx(np.sqrt(1 / 4 / 65), rel=0.08)


def test_what_is_pasted_is_drawn_anew_for_every_picture() -> None:
    drawn = [draw(AugmentConfig(mixup=1.0, copy_paste=0.3), position) for position in range(20)]
    pastes = [paste for one in drawn for paste in (one.picture.pastes, one.mixup.picture.pastes)]
    assert {paste.probability for paste in pastes} == {0.3}
    assert len({paste.seed for paste in pastes}) == 40
    # After what was drawn before there were any.
    generator = sample_generator(3, 0, 7, Purpose.AUGMENTATION)
    generator.random(30 + 30 + 63 + 8 * 7)
    generator.integers(1 << 63)
    seeds = generator.integers(1 << 63, size=2).tolist()
    assert [paste.seed for paste in pastes[14:16]] == seeds


def test_patches_are_one_to_eight_of_any_place_size_and_colour() -> None:
    patches = [draw(AugmentConfig(cutout=1.0), position).patches for position in range(400)]
    assert {len(some) for some in patches} == set(range(1, 9))
    every = [patch for some in patches for patch in some]
    for values, least, most in (
        ([patch.centre for patch in every], 0, 1),
        ([patch.sides for patch in every], 0.05, 0.25),
        ([patch.colour for patch in every], 0, 255),
    ):
        assert least <= np.min(values) < least + 0.02 * (most - least)
        assert most - 0.02 * (most - least) < np.max(values) <= most
    assert len({patch.colour for patch in every}) > 0.99 * len(every)
