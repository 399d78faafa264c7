"""Files of ``torch.save``, in its zip format and the one before: what they hold, without running it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvdyolo.models.foreign_container import Container, open_container
from hvdyolo.models.foreign_pickle import StandIn, StorageReference
from hvdyolo.utils.errors import DataError, UsageError


class ForeignFile:
    """An open file of ``torch.save``; use it with ``with``.

    Attributes:
        content: what was saved, with :class:`StandIn` for everything but plain containers and values.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            UsageError: there is no such file.
            DataError: it is damaged, or holds what weights have no use for.
        """
        self.name = str(path)
        try:
            self._stream = open(path, "rb")  # noqa: SIM115 - until __exit__
        except OSError as error:
            raise UsageError(f"Cannot read the weights {path}: {error.strerror}.") from None
        try:
            self._container: Container = open_container(self._stream, self.name)
        except BaseException:
            self._stream.close()
            raise
        self.content = self._container.content
        self.bytes = path.stat().st_size

    def __enter__(self) -> "ForeignFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of the tensor or parameter that ``value`` stands for, without reading it.

        Raises:
            DataError: it is none.
        """
        size: Any = self._rebuilt(value)[2]
        if not _are_shapes(size):
            raise self._damaged("a tensor's shape is not made of whole numbers")
        return tuple(size)

    def tensor(self, value: Any) -> Tensor:
        """The tensor or parameter that ``value`` stands for.

        Raises:
            DataError: it is none, or does not lie in the file as it claims.
        """
        reference, offset, size, stride = self._rebuilt(value)[:4]
        if not isinstance(reference, StorageReference):
            raise self._damaged("a tensor has no storage")
        storage = self._container.storage(reference)
        if not _are_shapes(size, stride, (offset,)) or len(size) != len(stride):
            raise self._damaged("a tensor's shape is not made of whole numbers")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        # The first condition bounds what a copy takes: strides of 0 make much out of little.
        if count > storage.length or (count and last >= storage.length):
            raise self._damaged(f"a tensor of shape {size} does not lie within its {storage.length} values")
        if not count:
            return torch.empty(size, dtype=storage.dtype)
        values = torch.frombuffer(bytearray(self._container.read(storage)), dtype=storage.dtype)
        return values.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def _rebuilt(self, value: Any) -> tuple[Any, ...]:
        """Storage, offset, size and stride that a tensor is rebuilt from."""
        if _is_call(value, "torch._utils._rebuild_parameter"):
            value = value.arguments[0]
        if not _is_call(value, "torch._utils._rebuild_tensor_v2") or len(value.arguments) < 4:
            raise self._damaged("a tensor was expected and something else is there")
        return tuple(value.arguments)

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.name} is damaged: {reason}; fetch the file again.")


def _is_call(value: Any, origin: str) -> bool:
    """Whether ``value`` stands for what the function ``origin`` would have made."""
    return isinstance(value, StandIn) and value.origin == origin and len(value.arguments) > 0


def _are_shapes(*shapes: Any) -> bool:
    """Whether all are tuples of few whole numbers that are not negative."""
    return all(
        isinstance(shape, tuple)
        and len(shape) <= 8
        and all(type(v) is int and 0 <= v < 1 << 48 for v in shape)
        for shape in shapes
    )
