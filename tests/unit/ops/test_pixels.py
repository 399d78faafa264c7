"""The device side of a batch against the standard library's colour conversion."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvdyolo.ops.pixels import prepare_images

BYTES = st.integers(0, 255)


def recoloured(pixel: tuple[int, int, int], gains: tuple[float, float, float]) -> list[float]:
    """One pixel by ``colorsys``, in 0..1."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    hue, saturation, value = hue * gains[0] % 1, min(saturation * gains[1], 1), min(value * gains[2], 1)
    return list(colorsys.hsv_to_rgb(hue, saturation, value))


@given(
    pixels=st.lists(st.tuples(BYTES, BYTES, BYTES), min_size=6, max_size=6),
    gains=st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2)),
)
def test_colours_equal_colorsys(
    pixels: list[tuple[int, int, int]], gains: tuple[float, float, float]
) -> None:
    images = torch.tensor(pixels, dtype=torch.uint8).view(1, 2, 3, 3)
    # In double precision, because beside a jump of the hue's turn the last digit decides.
    found = prepare_images(images, None, torch.tensor([gains], dtype=torch.float64), torch.float64)
    expected = [recoloured(pixel, gains) for pixel in pixels]
    assert np.allclose(found[0].permute(1, 2, 0).reshape(-1, 3).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    "pixel",
    [
        (0, 0, 0), (255, 255, 255), (114, 114, 114),  # no hue
        (255, 0, 0), (0, 255, 0), (0, 0, 255),
        (255, 255, 0), (0, 255, 255), (255, 0, 255),  # two channels are the largest
        (255, 0, 1), (255, 1, 0),  # both sides of where the circle closes
        (1, 0, 0), (254, 255, 255),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0), (1.015, 1.7, 1.4), (0.985, 0.3, 0.6), (1.9, 1.0, 1.0)])
def test_edges_of_the_colour_circle(pixel: tuple[int, int, int], gains: tuple[float, float, float]) -> None:
    images = torch.tensor(pixel, dtype=torch.uint8).view(1, 1, 1, 3)
    found = prepare_images(images, None, torch.tensor([gains]))
    assert np.allclose(found.flatten().numpy(), recoloured(pixel, gains), atol=2e-6)


def test_every_image_has_its_own_gains_and_flip() -> None:
    images = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    gains = torch.tensor([[1.0, 1.0, 1.0], [1.01, 1.5, 0.7], [0.99, 0.5, 1.3]])
    flip = torch.tensor([False, True, True])
    together = prepare_images(images, flip, gains)
    for index in range(3):
        alone = slice(index, index + 1)
        mirrored = images[alone].flip(2) if flip[index] else images[alone]
        assert together[alone].equal(prepare_images(mirrored, None, gains[alone]))


def test_plain_scaling_and_layout() -> None:
    images = torch.arange(2 * 2 * 3 * 3, dtype=torch.uint8).view(2, 2, 3, 3)
    for gains in (None, torch.ones(2, 3)):
        found = prepare_images(images, None, gains)
        assert found.shape == (2, 3, 2, 3)
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        # Image 1, row 0, column 2, green.
        assert found[1, 1, 0, 2].item() == pytest.approx((18 + 2 * 3 + 1) / 255, abs=1e-6)
        assert torch.allclose(found, images.permute(0, 3, 1, 2) / 255, atol=1e-6)


def test_flip_mirrors_left_and_right() -> None:
    images = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]], dtype=torch.uint8)[None]
    for flip, columns in ((True, [4, 1]), (False, [1, 4])):
        found = prepare_images(images, torch.tensor([flip]))
        assert torch.allclose(found[0, 0, 0] * 255, torch.tensor(columns).float())
    assert images[0, 0, 0].tolist() == [1, 2, 3], "the batch itself is left alone"


@pytest.mark.parametrize("size", [16, 96])
def test_inputs_are_resized_last_and_by_the_one_rule(size: int) -> None:
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    flip, gains = torch.tensor([True, False]), torch.tensor([[1.0, 1.5, 0.8], [1.0, 1.0, 1.0]])
    found = prepare_images(images, flip, gains, size=size)
    assert found.shape == (2, 3, size, size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for image, whole in zip(found, prepare_images(images, flip, gains), strict=True):
        for plane, expected in zip(image, whole, strict=True):
            resized = Image.fromarray(expected.numpy()).resize((size, size), Image.Resampling.BILINEAR)
            assert torch.allclose(plane, torch.from_numpy(np.array(resized)), atol=1e-5)


def test_inputs_of_their_own_size_are_left_alone() -> None:
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    assert prepare_images(images, size=32).equal(prepare_images(images))
