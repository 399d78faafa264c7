"""Items that a thread makes ahead of who takes them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")


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
        found = self._made[0].result()
        if not found:
            raise StopIteration
        del self._made[0]
        self._made.append(self._ask())
        return found[0]

    def close(self) -> None:
        """Wait for the item that is being made; none is made from then on."""
        self._thread.shutdown(cancel_futures=True)

    def _ask(self) -> Future[tuple[ItemT, ...]]:
        return self._thread.submit(self._take)

    def _take(self) -> tuple[ItemT, ...]:
        """The next item, or nothing: a future cannot carry the end of an iteration."""
        for item in self._items:
            return (item,)
        return ()
