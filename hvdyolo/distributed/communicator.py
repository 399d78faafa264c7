"""What training needs of a group of ranks. Horovod and a single process both provide it."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from hvdyolo.distributed.world import World

T = TypeVar("T")


class PendingSum(Protocol):
    """A sum on its way."""

    def wait(self) -> Tensor:
        """The sum, once all ranks have given their part."""


class GradientReduction(Protocol):
    """An optimizer whose gradients are summed, not averaged, over ranks before it steps.

    A step is ``begin(passes)``, that many backward passes, ``wait()``, ``step()``, ``zero_grad()``. There is
    one reduction a step, overlapped with the last backward pass.
    """

    def begin(self, passes: int) -> None:
        """Announce how many backward passes make up the step."""

    def wait(self) -> None:
        """Finish the reduction: from here on gradients are the sums."""

    def step(self) -> None:
        """Apply the gradients as they are."""

    def zero_grad(self) -> None:
        """Forget them."""


class Communicator(Protocol):
    """A group of ranks. Every method but ``abort`` must be called by all of them, in the same order.

    Attributes:
        world: this rank's place.
        settings: what was chosen for this launch, for the log.
    """

    world: World
    settings: Mapping[str, str]

    def barrier(self, name: str) -> None:
        """Return when all ranks have come here."""

    def sum(self, name: str, tensor: Tensor) -> Tensor:
        """The sum of all ranks' floating-point tensors."""

    def sum_async(self, name: str, tensor: Tensor) -> PendingSum:
        """Start summing."""

    def broadcast_object(self, name: str, value: T) -> T:
        """Rank 0's value, on every rank; picklable."""

    def gather_objects(self, name: str, value: T) -> list[T]:
        """All ranks' values, in rank order, on every rank; picklable."""

    def broadcast_state(self, model: nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers, and check that they have them.

        Raises:
            InternalError: they have not.
        """

    def check_equal(self, state: Mapping[str, Tensor]) -> None:
        """Compare tensors over ranks, bit by bit, by their hashes.

        Raises:
            InternalError: they differ; names the first that does, and the ranks. All ranks raise it alike.
        """

    def average_running_statistics(self, model: nn.Module) -> None:
        """Replace batch norm's running means and variances by their averages over ranks."""

    def reduce_gradients(self, optimizer: Optimizer, model: nn.Module) -> GradientReduction:
        """Sum the gradients of ``model`` over ranks for ``optimizer``, which keeps its state."""

    def abort(self, code: int) -> None:
        """End all ranks at once with ``code``; one rank calls it."""

    def close(self) -> None:
        """Leave the group in order."""
