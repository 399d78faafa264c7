"""Ranks that succeed or fail together.

A check that fails on one rank alone would leave the others waiting in a collective for ever.
"""

from collections.abc import Callable
from typing import TypeVar

from hvdyolo.distributed.communicator import Communicator
from hvdyolo.utils.errors import HvdyoloError

T = TypeVar("T")


def on_first_rank(comm: Communicator, name: str, action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 only; every rank returns its result or raises its error."""
    result: T | HvdyoloError | None = None
    if comm.world.rank == 0:
        try:
            result = action()
        except HvdyoloError as error:
            result = error
    shared = comm.broadcast_object(name, result)
    if isinstance(shared, HvdyoloError):
        shared.agreed = True
        raise shared
    return shared  # type: ignore[return-value]  # None only if the action returned it


def on_every_rank(comm: Communicator, name: str, action: Callable[[], T]) -> T:
    """Run ``action`` on every rank; if it fails on any, every rank raises the first rank's error."""
    result: T | None = None
    failure: HvdyoloError | None = None
    try:
        result = action()
    except HvdyoloError as error:
        failure = error
    for other in comm.gather_objects(name, failure):
        if other is not None:
            other.agreed = True
            raise other
    return result  # type: ignore[return-value]  # None only if the action returned it
