"""Two pictures in one, both of whose objects are to be found (mixup, arXiv 1710.09412)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hvdyolo.data.objects import Objects


def mix_in(
    output: NDArray[np.uint8],
    objects: Objects,
    other: NDArray[np.uint8],
    other_objects: Objects,
    share: float,
) -> Objects:
    """Blend ``other`` into ``output``, both (size, size, 3), with the share that it is to have."""
    blend = Image.blend(Image.fromarray(output), Image.fromarray(other), share)
    output[...] = np.asarray(blend)
    return Objects.joined([objects, other_objects])
