"""A policy of AutoAugment on a picture (arXiv 1906.11172): colours, moves, and changes inside boxes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hvdyolo.data.autoaugment_operations import (
    COLOURS,
    MOVES,
    MOVES_IN_BOXES,
    cut_into_a_box,
    cut_square,
    cut_square_in_box,
)
from hvdyolo.data.autoaugment_policies import POLICIES
from hvdyolo.data.objects import Objects
from hvdyolo.data.parameters import PolicyDraw
from hvdyolo.data.placement import Matrix, project_boxes, worth_learning
from hvdyolo.data.render import Warp

Pixels = NDArray[np.uint8]

_MOST = 10
"""Magnitude of full strength."""
_ONLY_BOXES = 1 / 3
"""Share of its probability with which an operation changes a box: there are several in a picture."""


def apply_policy(pixels: Pixels, objects: Objects, draw: PolicyDraw, warp: Warp) -> Objects:
    """Change ``pixels`` (size, size, 3) by a drawn sub-policy; returns the objects where they are now."""
    generator = np.random.Generator(np.random.Philox(key=draw.seed))
    sub_policies = POLICIES[draw.name]
    for name, probability, magnitude in sub_policies[generator.integers(len(sub_policies))]:
        strength = magnitude / _MOST
        if name.endswith("_Only_BBoxes"):
            change_boxes(name, probability, strength, pixels, objects, warp, generator)
        elif generator.random() < probability:
            objects = change_picture(name, strength, pixels, objects, warp, generator)
    return objects


def change_picture(
    name: str, strength: float, pixels: Pixels, objects: Objects, warp: Warp, generator: np.random.Generator
) -> Objects:
    """Change ``pixels`` by one operation; ``strength`` is 0 … 1."""
    if name in MOVES:
        return _move(pixels, objects, MOVES[name](_signed(strength, generator), len(pixels)), warp)
    if name in COLOURS:
        pixels[...] = np.asarray(COLOURS[name](Image.fromarray(pixels), strength))
    elif name == "Cutout":
        cut_square(pixels, strength, generator)
    elif name == "BBox_Cutout":
        cut_into_a_box(pixels, objects.boxes_xyxy, strength, generator)
    else:
        raise ValueError(f"AutoAugment has no operation {name}")
    return objects


def change_boxes(
    name: str,
    probability: float,
    strength: float,
    pixels: Pixels,
    objects: Objects,
    warp: Warp,
    generator: np.random.Generator,
) -> None:
    """Change the pixels inside some of the boxes; the boxes stay where they are."""
    for left, top, right, bottom in _touched(objects.boxes_xyxy):
        if generator.random() < probability * _ONLY_BOXES:
            inside = pixels[top:bottom, left:right].copy()
            _change_inside(name, strength, inside, len(pixels), warp, generator)
            pixels[top:bottom, left:right] = inside


def _change_inside(
    name: str, strength: float, inside: Pixels, size: int, warp: Warp, generator: np.random.Generator
) -> None:
    """Change the pixels of one box of a picture of some size."""
    if name in MOVES_IN_BOXES:
        warp(inside.copy(), MOVES_IN_BOXES[name](_signed(strength, generator), size), inside)
    elif name == "Flip_Only_BBoxes":
        inside[...] = inside[:, ::-1].copy()
    elif name == "Equalize_Only_BBoxes":
        inside[...] = np.asarray(ImageOps.equalize(Image.fromarray(inside)))
    elif name == "Cutout_Only_BBoxes":
        cut_square_in_box(inside, size, strength, generator)
    else:
        raise ValueError(f"AutoAugment has no operation {name}")


def _move(pixels: Pixels, objects: Objects, matrix: Matrix, warp: Warp) -> Objects:
    size = len(pixels)
    warp(pixels.copy(), matrix, pixels)
    boxes = project_boxes(objects.boxes_xyxy, matrix, size).clip(0, size)
    return Objects(objects.classes, boxes).kept(worth_learning(objects.boxes_xyxy, boxes))


def _signed(strength: float, generator: np.random.Generator) -> float:
    return strength if generator.random() < 0.5 else -strength


def _touched(boxes_xyxy: NDArray[np.floating]) -> list[tuple[int, int, int, int]]:
    """Bounds of the pixels that boxes touch."""
    bounds = np.concatenate([np.floor(boxes_xyxy[:, :2]), np.ceil(boxes_xyxy[:, 2:])], axis=1)
    return [(left, top, right, bottom) for left, top, right, bottom in bounds.astype(int).tolist()]
