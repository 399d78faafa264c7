"""Many ranks, by Horovod: the only file that knows its interface."""

import os
import pickle
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdyolo.distributed.state_digests import check_digests, state_digests
from hvdyolo.distributed.world import World

T = TypeVar("T")

# MPI counts in 32 bits, and an allgather counts what all ranks send together.
_MOST_BYTES_GATHERED = 1 << 30
# A look at a reduction costs 40 microseconds of a core, and one takes several milliseconds.
_LOOK_SECONDS = 0.001


@dataclass(frozen=True)
class _PendingHorovodSum:
    horovod: Any
    handle: int

    def wait(self) -> Tensor:
        return self.horovod.synchronize(self.handle)  # type: ignore[no-any-return]


class HorovodGradients:
    """Horovod's distributed optimizer: each gradient is on its way as soon as its last pass is done.

    Args:
        compression: ``fp16`` sends gradients in half precision. What travels then are shares of the mean:
            a sum over many ranks would leave the range (65504) that each rank's gradient is in.
    """

    def __init__(
        self,
        horovod: Any,
        optimizer: Optimizer,
        model: nn.Module,
        compression: Literal["none", "fp16"] = "none",
    ) -> None:
        self._horovod = horovod
        self._averaged_over = horovod.size() if compression == "fp16" else 1
        reduced = (
            {"op": horovod.Sum}
            if compression == "none"
            else {
                "op": horovod.Average,
                "compression": horovod.Compression.fp16,
                "gradient_predivide_factor": float(horovod.size()),
            }
        )
        self._optimizer = horovod.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters(), **reduced
        )
        # It is a new object with the same groups; share the state too, so that either can save or load it.
        self._optimizer.state = optimizer.state

    def begin(self, passes: int) -> None:
        self._optimizer.set_backward_passes_per_step(passes)

    def wait(self) -> None:
        self._sleep_until_reduced()
        self._optimizer.synchronize()
        if self._averaged_over > 1:
            gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
            torch._foreach_mul_([grad for grad in gradients if grad is not None], self._averaged_over)

    def step(self) -> None:
        with self._optimizer.skip_synchronize():
            self._optimizer.step()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def _sleep_until_reduced(self) -> None:
        """Leave the core, until the sums are there, to loader workers and to the ranks that are behind.

        Horovod's ``synchronize`` asks again and again without a pause: 45 to 95 ms of a core a step where
        the model is on CPUs. Beside GPUs cores are to spare, and a pause would only delay.
        """
        sent = self._optimizer._handles
        # What took no part in this rank's loss is sent by ``synchronize``; until then others may wait for it.
        if len(sent) < len(self._optimizer._requires_update):
            return
        if any(handle is None or parameter.is_cuda for parameter, (handle, _) in sent.items()):
            return
        for handle, _ in sent.values():
            while not self._horovod.poll(handle):
                time.sleep(_LOOK_SECONDS)


class HorovodCommunicator:
    """The ranks of an ``mpirun`` or ``horovodrun`` job."""

    def __init__(
        self, world: World, settings: Mapping[str, str], compression: Literal["none", "fp16"] = "none"
    ) -> None:
        # Here and not above: importing either in a child process of an MPI job aborts the job.
        import horovod.torch as horovod

        horovod.init()
        self._horovod = horovod
        self.world = World(
            rank=horovod.rank(),
            size=horovod.size(),
            local_rank=horovod.local_rank(),
            local_size=horovod.local_size(),
            host=world.host,
        )
        self.settings = settings
        self._compression = compression

    def barrier(self, name: str) -> None:
        self.sum(f"barrier: {name}", torch.zeros(1))

    def sum(self, name: str, tensor: Tensor) -> Tensor:
        return self._horovod.allreduce(tensor, name=name, op=self._horovod.Sum)  # type: ignore[no-any-return]

    def sum_async(self, name: str, tensor: Tensor) -> _PendingHorovodSum:
        handle = self._horovod.allreduce_async(tensor, name=name, op=self._horovod.Sum)
        return _PendingHorovodSum(self._horovod, handle)

    def broadcast_object(self, name: str, value: T) -> T:
        return self._horovod.broadcast_object(value, root_rank=0, name=name)  # type: ignore[no-any-return]

    def gather_objects(self, name: str, value: T) -> list[T]:
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        lengths = self._allgather(f"{name}: lengths", torch.tensor([len(content)]))
        # In rounds: together they may be more than one call can carry.
        block = _MOST_BYTES_GATHERED // self.world.size
        pieces: list[list[Tensor]] = [[] for _ in range(self.world.size)]
        for first in range(0, int(lengths.max()), block):
            joined = self._allgather(f"{name}: content", content[first : first + block])
            sizes = (lengths - first).clamp(0, block).tolist()
            for rank, piece in enumerate(torch.split(joined, sizes)):
                pieces[rank].append(piece)
        return [pickle.loads(torch.cat(parts).numpy().tobytes()) for parts in pieces]  # noqa: S301 - our ranks

    def broadcast_state(self, model: nn.Module) -> None:
        self._horovod.broadcast_parameters(model.state_dict(), root_rank=0)
        self.check_equal(model.state_dict())

    def check_equal(self, state: Mapping[str, Tensor]) -> None:
        own = (self.world.host, state_digests(state))
        check_digests(self.gather_objects("check equal", own))

    def average_running_statistics(self, model: nn.Module) -> None:
        statistics = [
            value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))
        ]
        if not statistics:
            return
        # One vector: a hundred small reductions would each wait for Horovod's cycle.
        joined = torch.cat([value.flatten().double() for value in statistics])
        average = self.sum("running statistics", joined) / self.world.size
        for value, part in zip(
            statistics, torch.split(average, [v.numel() for v in statistics]), strict=True
        ):
            value.copy_(part.view_as(value))

    def reduce_gradients(self, optimizer: Optimizer, model: nn.Module) -> HorovodGradients:
        return HorovodGradients(self._horovod, optimizer, model, self._compression)

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._horovod.mpi_enabled():
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        self._horovod.shutdown()

    def _allgather(self, name: str, tensor: Tensor) -> Tensor:
        return self._horovod.allgather(tensor, name=name)  # type: ignore[no-any-return]
