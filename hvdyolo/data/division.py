"""How a split is divided into shards."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def divide(sizes: NDArray[np.int64], shard_bytes: int) -> list[range]:
    """Runs of neighbouring samples, one a shard, of about ``shard_bytes`` each and about equal.

    Args:
        sizes: (n,) bytes of each sample, in the order of the split; n is at least 1.
    """
    count = min(max(1, round(int(sizes.sum()) / shard_bytes)), len(sizes))
    ends = np.cumsum(sizes)
    # A sample belongs to the shard in which its middle byte lies; a shard that would be empty is left out.
    shard_of = np.minimum((ends - sizes / 2) * count // max(int(ends[-1]), 1), count - 1)
    borders = np.flatnonzero(np.diff(shard_of)) + 1
    return [range(first, last) for first, last in pairwise([0, *borders.tolist(), len(sizes)])]
