"""One process, with the interface of many."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from hvdyolo.distributed.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class _Summed:
    total: Tensor

    def wait(self) -> Tensor:
        return self.total


class LocalGradients:
    """The plain optimizer: there is nothing to reduce."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def begin(self, passes: int) -> None:
        """Nothing to announce."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def step(self) -> None:
        self._optimizer.step()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()


class SingleProcess:
    """The only rank: every collective gives back what it is given."""

    def __init__(self) -> None:
        self.world = World.alone()
        self.settings: Mapping[str, str] = {}

    def barrier(self, name: str) -> None:
        """All ranks are here."""

    def sum(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def sum_async(self, name: str, tensor: Tensor) -> _Summed:
        return _Summed(tensor)

    def broadcast_object(self, name: str, value: T) -> T:
        return value

    def gather_objects(self, name: str, value: T) -> list[T]:
        return [value]

    def broadcast_state(self, model: nn.Module) -> None:
        """The state is where it is needed."""

    def check_equal(self, state: Mapping[str, Tensor]) -> None:
        """Equal to itself."""

    def average_running_statistics(self, model: nn.Module) -> None:
        """Their own average."""

    def reduce_gradients(self, optimizer: Optimizer, model: nn.Module) -> LocalGradients:
        return LocalGradients(optimizer)

    def abort(self, code: int) -> None:
        os._exit(code)

    def close(self) -> None:
        """Nothing to leave."""
