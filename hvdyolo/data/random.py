"""Random numbers that depend on what they are for, never on what was drawn before."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What numbers are drawn for; streams of different purposes are independent."""

    AUGMENTATION = 1
    INPUT_SIZE = 2
    ANCHORS = 3
    IMAGE_WEIGHTING = 4


def sample_generator(seed: int, epoch: int, position: int, purpose: Purpose) -> np.random.Generator:
    """The generator of one position of one epoch.

    Philox numbers its outputs by a 256-bit counter under a 128-bit key. Seed and purpose are the
    key, epoch and position the upper words of the counter; the lowest two words count the draws.
    So no two streams overlap, by construction.
    """
    return np.random.Generator(
        np.random.Philox(key=_words(seed, purpose), counter=_words(0, 0, position, epoch))
    )


def _words(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)
