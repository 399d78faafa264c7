"""From a batch of bytes to the network's input: mirror, colour, scale, size and layout.

This runs on every training batch. On one core, 8 images of 320 pixels take about 1 ms, and 10 ms with
mirror and colour. It would be five times as much with ``torch.where`` and ``%``, which are not vectorised on
CPUs; hence the choices by arithmetic below. And colours of a whole batch at once would take twice as long, or
at 640 pixels four times: each operation's result would be allocated anew and leave the cache.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_TINY = 1e-12
_BLOCK_PIXELS = 1 << 16  # of an image whose colours a CPU changes together; half and twice as many are slower


def prepare_images(
    images: Tensor,
    flip: Tensor | None = None,
    colour_gains: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Tensor:
    """The input of the network.

    Args:
        images: uint8 (B, H, W, 3) RGB.
        flip: bool (B,): images to mirror left to right.
        colour_gains: float32 (B, 3): factors of hue, saturation and value.
        dtype: of the result, and of the arithmetic on colours.
        size: side of the result; by default that of the images.

    Returns:
        (B, 3, H, W) in 0..1, in channels_last memory, in which convolutions on CPUs run a third faster even
        with contiguous weights.
    """
    inputs = _coloured(images.permute(0, 3, 1, 2), flip, colour_gains, dtype)
    if size is None or size == inputs.shape[-1]:
        return inputs
    # The project's rule is a triangle that widens when shrinking; to enlarge, the plain one is the same.
    return interpolate(inputs, (size, size), mode="bilinear", antialias=size < inputs.shape[-1])


def _coloured(planes: Tensor, flip: Tensor | None, colour_gains: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, 3, H, W) of the images' own size, in 0..1."""
    if colour_gains is None:
        mirrored = planes if flip is None else _mirror(planes, flip)
        # In place: a second tensor would take three times as long to fill.
        return mirrored.to(dtype).div_(255).contiguous(memory_format=torch.channels_last)
    mirrored = planes.contiguous() if flip is None else _mirror(planes.contiguous(), flip)
    inputs = torch.empty_like(planes, dtype=dtype, memory_format=torch.channels_last)
    for block in _blocks(planes):
        inputs[block] = scale_hsv(mirrored[block].to(dtype).div_(255), colour_gains[block[0]].to(dtype))
    return inputs


def _blocks(planes: Tensor) -> list[tuple[slice, slice, slice]]:
    """Parts of (B, C, H, W) to colour together: all on a GPU, some rows of an image on a CPU."""
    images, _, height, width = planes.shape
    whole = slice(None)
    if planes.device.type != "cpu":
        return [(whole, whole, whole)]
    rows = max(1, _BLOCK_PIXELS // width)
    return [
        (slice(image, image + 1), whole, slice(row, row + rows))
        for image in range(images)
        for row in range(0, height, rows)
    ]


def scale_hsv(images: Tensor, gains: Tensor) -> Tensor:
    """Multiply hue, saturation and value: (B, 3, H, W) RGB in 0..1 and (B, 3) gains → the like.

    Hue is cyclic, saturation and value are clamped to 1. Grey has hue 0.
    """
    hue_gain, saturation_gain, value_gain = gains[:, :, None, None].unbind(1)
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    hue = _hue(red, green, blue, value, chroma).mul_(hue_gain)
    hue -= hue.floor()
    hue *= 6
    saturation = chroma.div_(value.clamp_min(_TINY)).mul_(saturation_gain).clamp_max_(1)
    value = value.mul_(value_gain).clamp_max_(1)
    depth = saturation.mul_(value)
    # A channel is the value, less the depth where the hue is far from the channel's own.
    farness = (
        2 - (hue - 3).abs(),  # red, at 0 and 6
        (hue - 2).abs() - 1,  # green
        (hue - 4).abs() - 1,  # blue
    )
    result = images.new_empty(*value.shape, 3)
    for channel, far in enumerate(farness):
        torch.sub(value, far.clamp_(0, 1).mul_(depth), out=result[..., channel])
    return result.permute(0, 3, 1, 2)


def _mirror(planes: Tensor, flip: Tensor) -> Tensor:
    """uint8 (B, C, H, W) with the rows of some images reversed."""
    # Where the mask has all bits set, x ^ (x ^ y) = y: seven times as fast as torch.where.
    mask = flip.to(torch.uint8).neg()[:, None, None, None]
    return planes ^ ((planes ^ planes.flip(3)) & mask)


def _hue(red: Tensor, green: Tensor, blue: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """Hue in 0..1 of a turn, by which channel is the largest, red before green before blue."""
    not_red, not_green = (value - red).sign_(), (value - green).sign_()
    difference = torch.lerp(green - blue, torch.lerp(blue - red, red - green, not_green), not_red)
    sextant = (not_green + 1).mul_(not_red).mul_(2)  # 0, 2 or 4
    hue = difference.div_(chroma.clamp_min(_TINY)).add_(sextant).div_(6)
    return hue.sub_(hue.floor())
