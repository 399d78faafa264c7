"""Loader workers keep the memory of one image for the next."""

import os
import platform
import resource
from contextlib import closing

import numpy as np
import pytest

from hvdyolo.data.work import WorkResults

# Below 4 MiB numpy does not ask for huge pages, of which there would be few.
IMAGE_BYTES, IMAGES = 2 << 20, 16
TIMES = 10


def take_and_free(task: int, /) -> int:
    """Pages that the system has to find for the images of a task, if all are held at once."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    images = [np.ones(IMAGE_BYTES, dtype=np.uint8) for _ in range(IMAGES)]
    assert len(images) == IMAGES
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(
    any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ,
    reason="it is adjusted already",
)
def test_memory_is_taken_from_the_system_once() -> None:
    pages = IMAGES * IMAGE_BYTES // resource.getpagesize()
    with closing(WorkResults(take_and_free, range(TIMES), workers=1, prefetch=1)) as results:
        first, *later = results
    assert first > pages // 4  # else it is not seen here
    assert max(later) < pages // 10
