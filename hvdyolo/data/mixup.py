"""Two pictures in one, both of whose objects are to be found (mixup, arXiv 1710.09412)."""

import numpy as np
from numpy.typing import NDArray

from hvdyolo.data.objects import Objects

_WHOLE = 256


def mix_in(
    output: NDArray[np.uint8],
    objects: Objects,
    other: NDArray[np.uint8],
    other_objects: Objects,
    share: float,
) -> Objects:
    """Blend ``other`` into ``output``, both (size, size, 3), with the share that it is to have.

    In 16 bits, a tenth of the time of Pillow's blend, which converts both pictures.
    """
    parts = round(share * _WHOLE)
    blend = np.multiply(output, _WHOLE - parts, dtype=np.uint16)
    blend += np.multiply(other, parts, dtype=np.uint16)
    blend += _WHOLE // 2
    blend >>= 8
    output[...] = blend
    return Objects.joined([objects, other_objects])
