"""Whether ranks hold the same tensors, by their hashes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from xxhash import xxh3_128

from hvdyolo.utils.errors import InternalError

_MOST_NAMED = 8

Digests = Mapping[str, bytes]
"""By name of tensor."""


def state_digests(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The hash of each tensor's bits."""
    return {name: xxh3_128(tensor_bytes(value)).digest() for name, value in state.items()}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bits of ``tensor``, in the order of its elements."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def check_digests(ranks: Sequence[tuple[str, Digests]]) -> None:
    """Compare what all ranks have gathered: host and digests, in rank order.

    Raises:
        InternalError: some differ; every rank raises the same.
    """
    for name in ranks[0][1]:
        holders: dict[bytes, list[int]] = {}
        for rank, (_, digests) in enumerate(ranks):
            holders.setdefault(digests[name], []).append(rank)
        if len(holders) > 1:
            error = InternalError(f"Ranks disagree about {name}: {_name_minority(ranks, holders)}")
            error.agreed = True
            raise error


def _name_minority(ranks: Sequence[tuple[str, Digests]], holders: Mapping[bytes, list[int]]) -> str:
    """Who is probably wrong: those with a value that fewer have than another."""
    most = max(holders.values(), key=len)
    others = [rank for group in holders.values() if group is not most for rank in group]
    named = ", ".join(f"rank {rank} on {ranks[rank][0]}" for rank in others[:_MOST_NAMED])
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    like = f" and {len(most) - 1} equal to it" if len(most) > 1 else ""
    return (
        f"{named}{more} against rank {most[0]} on {ranks[most[0]][0]}{like}; "
        "suspect the memory or processor of the former, and resume from the last checkpoint."
    )
