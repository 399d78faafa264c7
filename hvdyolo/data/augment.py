"""Augmented training samples, in the published order.

A picture, which is one image or a mosaic under a homography, a second one mixed in, a policy of AutoAugment,
patches, mirror images. Left and right are mirrored, and colours changed, later, for the whole batch: see
:mod:`hvdyolo.ops.pixels`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.autoaugment import apply_policy
from hvdyolo.data.cutout import cut_out
from hvdyolo.data.mixup import mix_in
from hvdyolo.data.objects import Objects
from hvdyolo.data.parameters import AugmentParameters
from hvdyolo.data.picture import ImageSource, paint
from hvdyolo.data.render import Renderer


@dataclass(frozen=True)
class AugmentedSample:
    """A sample whose pixels are still to be coloured and mirrored."""

    image: NDArray[np.uint8]
    """(size, size, 3) RGB, not mirrored."""
    labels: NDArray[np.float32]
    """(n, 5): class, cx, cy, w, h in 0..1 of the output, mirrored if `flip`."""
    colour_gains: tuple[float, float, float]
    """Factors of hue, saturation and value."""
    flip: bool
    """Mirror left and right."""


def augment(
    source: ImageSource, parameters: AugmentParameters, renderer: Renderer, output: NDArray[np.uint8]
) -> AugmentedSample:
    """The sample that the parameters describe; its pixels fill ``output``, (size, size, 3)."""
    objects = paint(source, parameters.picture, renderer, output)
    if parameters.mixup is not None:
        other = np.empty_like(output)
        other_objects = paint(source, parameters.mixup.picture, renderer, other)
        objects = mix_in(output, objects, other, other_objects, parameters.mixup.share)
    if parameters.policy is not None:
        objects = apply_policy(output, objects, parameters.policy, renderer.warp)
    if parameters.patches:
        objects = cut_out(output, objects, parameters.patches)
    if parameters.flip_up_down:
        objects = _flip_up_down(output, objects)
    labels = objects.labels(len(output))
    if parameters.flip_left_right:
        labels[:, 1] = 1 - labels[:, 1]
    return AugmentedSample(output, labels, parameters.colour_gains, parameters.flip_left_right)


def _flip_up_down(output: NDArray[np.uint8], objects: Objects) -> Objects:
    """Reverse the order of rows: they are copied whole, so this costs less here than on the batch."""
    output[...] = output[::-1].copy()
    boxes = objects.boxes_xyxy.copy()
    boxes[:, [1, 3]] = len(output) - boxes[:, [3, 1]]
    return Objects(objects.classes, boxes)
