"""Threads that work side by side in a rank, and what they have done so far."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock

import torch


class Tally:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.images = 0
        self.signs_of_life = 0

    def add(self, images: int) -> None:
        """Count images, and a sign of life."""
        with self._lock:
            self.images += images
            self.signs_of_life += 1


def run_lanes(
    count: int, lane: Callable[[], None], watch: Callable[[], None], halt: Event, interval: float
) -> None:
    """Run ``lane`` in ``count`` threads to its end, and ``watch`` in this thread every ``interval`` seconds.

    The first error of a lane, or of ``watch``, sets ``halt``, at which lanes must soon return, and is raised.
    """
    with one_torch_thread(), ThreadPoolExecutor(count, "lane") as pool:
        try:
            running = {pool.submit(lane) for _ in range(count)}
            while running:
                ended, running = wait(running, interval, FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                watch()
        finally:
            halt.set()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch uses one thread, in each of the threads that are started inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
