"""Items that a thread makes ahead: the same, in order, with their errors, and no more than said."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from hvdyolo.data import ahead
from hvdyolo.data.ahead import Ahead


@pytest.mark.parametrize("count", [1, 2, 9])
def test_items_come_in_order_and_end(count: int) -> None:
    items = Ahead(iter(range(5)), count)
    assert list(items) == [0, 1, 2, 3, 4]
    assert next(items, "end") == "end"


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_are_made_meanwhile_and_no_more(count: int) -> None:
    made: list[int] = []
    threads = set()
    last = threading.Event()

    def make() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            threads.add(threading.current_thread())
            if number == count:
                last.set()
            yield number

    items = Ahead(make(), count)
    assert next(items) == 0
    assert last.wait(10)
    time.sleep(0.2)  # for one too many
    assert made == list(range(count + 1))
    assert threading.current_thread() not in threads
    items.close(unblock=never)
    assert list(items) == []


def test_an_error_comes_where_its_item_would_and_stays() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("here")

    items = Ahead(fail(), 2)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="here"):
            next(items)


def never() -> None:
    raise AssertionError


@pytest.mark.parametrize("patient", [True, False])
def test_closing_waits_for_the_item_that_is_made(patient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> Iterator[int]:
        begun.set()
        go_on.wait(10)
        done.set()
        yield 1

    items = Ahead(slowly(), 2)
    assert begun.wait(10)
    if patient:
        threading.Timer(0.1, go_on.set).start()
        items.close(unblock=never)
    else:
        monkeypatch.setattr(ahead, "_PATIENCE", 0.05)
        items.close(unblock=go_on.set)
    assert done.is_set()
    assert list(items) == []
