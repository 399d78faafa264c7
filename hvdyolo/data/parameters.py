"""All that is random about a training sample, drawn before anything is decoded.

The numbers come from the sample's own generator. Each has its place there, whatever the settings, so that
changing one setting changes nothing else; new ones are drawn after those that were there before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvdyolo.config import AugmentConfig
from hvdyolo.data.placement import Homography

_DRAWS = 30
_MOST_PATCHES = 8
# A patch has its centre anywhere in the output, and sides of these fractions of it.
_LEAST_PATCH, _GREATEST_PATCH = 0.05, 0.25
# Beta(a, a) for a whole number a is the middle one of 2 a - 1 uniform numbers.
_BETA = 32


class Partners(Protocol):
    """The samples that another is mixed with."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> int:
        """A sample."""
        ...


@dataclass(frozen=True)
class PasteDraw:
    """That objects are pasted once more, and what their own random numbers follow from."""

    probability: float
    """Of each object that has an outline."""
    seed: int


@dataclass(frozen=True)
class PictureParameters:
    """One image, or a mosaic, under a homography."""

    sources: tuple[int, ...]
    """One sample, or four or nine row by row. Of nine, the one whose turn it is is the middle one."""
    meeting: tuple[float, float]
    """Where four meet, or the middle one of nine lies: x, y as fractions of the output size, 0.5 … 1.5."""
    homography: Homography
    pastes: PasteDraw | None = None


@dataclass(frozen=True)
class Mixup:
    """A second picture, blended into the first."""

    picture: PictureParameters
    share: float
    """Of the second picture in the blend, 0 … 1."""


@dataclass(frozen=True)
class Patch:
    """A rectangle of one colour."""

    centre: tuple[float, float]
    """x, y as fractions of the output."""
    sides: tuple[float, float]
    """Width and height as fractions of the output."""
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class PolicyDraw:
    """A policy of AutoAugment, and what its own random numbers follow from."""

    name: str
    seed: int


@dataclass(frozen=True)
class AugmentParameters:
    """In the order in which they are applied."""

    picture: PictureParameters
    mixup: Mixup | None
    policy: PolicyDraw | None
    patches: tuple[Patch, ...]
    flip_up_down: bool
    flip_left_right: bool
    colour_gains: tuple[float, float, float]
    """Factors of hue, saturation and value."""


def draw_parameters(
    settings: AugmentConfig, sample: int, partners: Partners, generator: np.random.Generator
) -> AugmentParameters:
    """Parameters of one sample."""
    draws = generator.random(_DRAWS).tolist()
    mixed_draws = generator.random(_DRAWS).tolist()
    share_draws = generator.random(2 * _BETA - 1)
    patch_draws = generator.random((_MOST_PATCHES, 7))
    policy_seed = int(generator.integers(1 << 63))
    paste_seed, mixed_paste_seed = generator.integers(1 << 63, size=2).tolist()

    hue, saturation, value = (2 * u - 1 for u in draws[13:16])
    left_right, up_down = draws[16:18]
    mixup, mixed_in, cutout, patches = draws[26:30]
    second = None
    if mixup < settings.mixup:
        picture = _draw_picture(settings, _drawn(partners, mixed_in), partners, mixed_draws, mixed_paste_seed)
        second = Mixup(picture, share=float(np.median(share_draws)))
    return AugmentParameters(
        picture=_draw_picture(settings, sample, partners, draws, paste_seed),
        mixup=second,
        policy=PolicyDraw(settings.autoaugment, policy_seed) if settings.autoaugment is not None else None,
        patches=_patches(patch_draws, patches) if cutout < settings.cutout else (),
        flip_up_down=up_down < settings.flip_up_down,
        flip_left_right=left_right < settings.flip_left_right,
        colour_gains=(
            1 + hue * settings.hue,
            1 + saturation * settings.saturation,
            1 + value * settings.value,
        ),
    )


def _draw_picture(
    settings: AugmentConfig, sample: int, partners: Partners, draws: Sequence[float], paste_seed: int
) -> PictureParameters:
    mosaic, meeting_x, meeting_y, *chosen, place = draws[:7]
    rotation, zoom, shear_x, shear_y, centre_x, centre_y = (2 * u - 1 for u in draws[7:13])
    perspective_x, perspective_y = (2 * u - 1 for u in draws[18:20])
    nine, *more_chosen = draws[20:26]
    if mosaic >= settings.mosaic:
        sources = [sample]
    elif nine >= settings.mosaic_9:
        sources = [_drawn(partners, u) for u in chosen]
        sources.insert(int(place * 4), sample)
    else:
        sources = [_drawn(partners, u) for u in (*chosen, *more_chosen)]
        sources.insert(4, sample)
    return PictureParameters(
        sources=tuple(sources),
        meeting=(0.5 + meeting_x, 0.5 + meeting_y),
        homography=Homography(
            zoom=1 + zoom * settings.scale,
            rotation=rotation * settings.degrees,
            shear_x=shear_x * settings.shear,
            shear_y=shear_y * settings.shear,
            centre_x=0.5 + centre_x * settings.translate,
            centre_y=0.5 + centre_y * settings.translate,
            perspective_x=perspective_x * settings.perspective,
            perspective_y=perspective_y * settings.perspective,
        ),
        pastes=PasteDraw(settings.copy_paste, paste_seed) if settings.copy_paste else None,
    )


def _drawn(partners: Partners, draw: float) -> int:
    return partners[int(draw * len(partners))]


def _patches(draws: NDArray[np.float64], count: float) -> tuple[Patch, ...]:
    """From 1 to as many as there are rows of seven draws."""
    drawn = []
    for x, y, width, height, *colour in draws[: 1 + int(count * len(draws))].tolist():
        red, green, blue = (int(u * 256) for u in colour)
        drawn.append(Patch((x, y), (_side(width), _side(height)), (red, green, blue)))
    return tuple(drawn)


def _side(draw: float) -> float:
    return _LEAST_PATCH + draw * (_GREATEST_PATCH - _LEAST_PATCH)
