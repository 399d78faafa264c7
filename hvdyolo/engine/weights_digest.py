"""Whether the ranks' weights are the same and finite.

Ranks that start with the same weights and apply the same sums keep them equal bit by bit, and their moving
averages with them. A failing memory or processor can end that silently. So every few steps each rank hashes
both, and the hash rides in the vector that is summed over ranks anyway: 10 ms for each of the two of YOLOv5s
on one core, and no collective.
"""

import torch
from torch import Tensor, nn
from xxhash import xxh3_64

from hvdyolo.distributed.state_digests import tensor_bytes

_PIECES = 4
_PIECE_BITS = 16

NUMBERS = 1 + 2 * _PIECES
"""What a digest takes of the vector."""


def weights_digest(*models: nn.Module) -> Tensor:
    """(NUMBERS,) 1, the hash of all parameters in pieces, and the pieces' squares."""
    state = xxh3_64()
    for model in models:
        for parameter in model.parameters():
            state.update(tensor_bytes(parameter))
    value = state.intdigest()
    pieces = [value >> _PIECE_BITS * number & (1 << _PIECE_BITS) - 1 for number in range(_PIECES)]
    return torch.tensor([1.0, *pieces, *(piece**2 for piece in pieces)], dtype=torch.float64)


def no_digest() -> Tensor:
    """(NUMBERS,) what stands in its place where nothing is compared."""
    return torch.zeros(NUMBERS, dtype=torch.float64)


def all_agree(total: Tensor) -> bool:
    """Whether ranks whose digests add up to ``total`` had the same one; every rank finds the same answer.

    (sum x)^2 <= R sum x^2, and they are equal only where all x are (Cauchy and Schwarz). The sums are whole
    numbers below 2^53, so exact in double precision, for up to two million ranks.
    """
    ranks, *numbers = (int(number) for number in total)
    sums, squares = numbers[:_PIECES], numbers[_PIECES:]
    return all(sum_**2 == ranks * square for sum_, square in zip(sums, squares, strict=True))


def first_non_finite(model: nn.Module) -> str | None:
    """The name of a weight or buffer that has an infinite value or one that is no number."""
    state = model.state_dict().items()
    return next((name for name, value in state if not torch.isfinite(value).all()), None)
