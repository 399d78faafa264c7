"""Items that a thread makes ahead of who takes them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

ItemT = TypeVar("ItemT")

_PATIENCE = 5.0  # seconds


class Ahead(Iterator[ItemT]):
    """The same items, ``count`` of which a thread makes before they are asked for.

    Worth it where an item costs time without Python's lock, as copying does. Errors come out where their item
    would have.
    """

    def __init__(self, items: Iterator[ItemT], count: int) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._made: deque[Future[tuple[ItemT, ...]]] = deque(self._ask() for _ in range(count))

    def __next__(self) -> ItemT:
        found = self._made[0].result() if self._made else ()
        if not found:
            raise StopIteration
        del self._made[0]
        self._made.append(self._ask())
        return found[0]

    def close(self, unblock: Callable[[], None]) -> None:
        """End the iteration, when the item that is being made is there.

        Args:
            unblock: is called if that takes more than 5 seconds; then it has to come, or an error instead.
        """
        self._thread.shutdown(wait=False, cancel_futures=True)
        if wait([made for made in self._made if not made.cancelled()], _PATIENCE).not_done:
            unblock()
        self._thread.shutdown()
        self._made.clear()

    def _ask(self) -> Future[tuple[ItemT, ...]]:
        return self._thread.submit(self._take)

    def _take(self) -> tuple[ItemT, ...]:
        """The next item, or nothing: a future cannot carry the end of an iteration."""
        nothing = object()
        item = next(self._items, nothing)
        return () if item is nothing else (item,)  # type: ignore[return-value]
