"""Images that workers leave in memory they share with the rank are not overwritten before they are taken."""

import time
from contextlib import closing
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hvdyolo.data import buffers
from hvdyolo.data.buffers import SharedImages
from hvdyolo.data.work import WorkResults
from hvdyolo.utils.errors import StorageError

STEPS = 12


@dataclass(frozen=True, eq=False)
class Mark:
    """Fills the images of its step with the step's number, at once."""

    shared: SharedImages
    begun: Tensor
    """(workers,): the last step each began."""

    def __call__(self, task: tuple[int, int], /) -> int:
        step, part = task
        self.begun[part] = step
        self.shared.batch(part, step, 2).fill_(step)
        return step


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 3)])
def test_workers_never_reach_what_was_taken_last(workers: int, prefetch: int) -> None:
    shared = SharedImages.allocate(workers, prefetch, slots=2, size=4)
    begun = torch.zeros(workers, dtype=torch.int64).share_memory_()
    tasks = [(step, part) for step in range(STEPS) for part in range(workers)]
    furthest = 0
    with closing(WorkResults(Mark(shared, begun), tasks, workers=workers, prefetch=prefetch)) as results:
        for step, part in tasks:
            assert next(results) == step
            # Workers get ahead as far as they can, those of parts that were taken before included.
            time.sleep(0.05)
            furthest = max(furthest, int(begun[part]) - step)
            for taken in range(part + 1):
                assert (shared.batch(taken, step, 2) == step).all()
    assert furthest == prefetch  # else the test has not seen the worst


def test_too_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_free_bytes", lambda: 64 << 20)
    SharedImages.allocate(2, 2, slots=8, size=640)
    with pytest.raises(StorageError, match=r"share 70 MiB .* has 64 MiB; enlarge it"):
        SharedImages.allocate(2, 2, slots=10, size=640)
