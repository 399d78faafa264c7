"""Many ranks, by Horovod: the only file that knows its interface."""

import os
import pickle
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdyolo.distributed.gradient_buckets import bucket_gradients
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
    """Sums gradients over ranks: a bucket is on its way as soon as its last gradient is there.

    Horovod's own optimizer sends each gradient by itself: three calls of Python and an agreement of all ranks
    for each of a network's 180, which then are copied together anyway.

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
        self._optimizer = optimizer
        self._halves = compression == "fp16"
        learned = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        # Backward passes come to the last parameters first.
        self._buckets = bucket_gradients(p for p in reversed(list(model.parameters())) if p in learned)
        self._missing = [0] * len(self._buckets)
        self._sent: dict[int, int] = {}  # bucket to Horovod's handle
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._note, number)
                )

    def begin(self, passes: int) -> None:
        self._missing = [passes * len(bucket.parameters) for bucket in self._buckets]

    def wait(self) -> None:
        for number in range(len(self._buckets)):
            if number not in self._sent:  # a parameter of it took no part in the loss
                self._send(number)
        self._sleep_until_reduced()
        for number, bucket in enumerate(self._buckets):
            total = self._horovod.synchronize(self._sent.pop(number))
            if self._halves:
                bucket.flat.copy_(total).mul_(self._horovod.size())
            bucket.hand_out()

    def step(self) -> None:
        self._optimizer.step()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def _note(self, number: int, parameter: Tensor) -> None:
        """One more gradient of a bucket is there."""
        self._missing[number] -= 1
        if self._missing[number] == 0:
            self._send(number)

    def _send(self, number: int) -> None:
        bucket = self._buckets[number]
        bucket.fill()
        share = (bucket.flat / self._horovod.size()).half() if self._halves else bucket.flat
        self._sent[number] = self._horovod.allreduce_async_(
            share, name=f"gradients {number}", op=self._horovod.Sum
        )

    def _sleep_until_reduced(self) -> None:
        """Leave the core, until the sums are there, to loader workers and to the ranks that are behind.

        Horovod's ``synchronize`` asks again and again without a pause: 45 to 95 ms of a core a step where
        the model is on CPUs. Beside GPUs cores are to spare, and a pause would only delay.
        """
        for number, handle in self._sent.items():
            while not self._buckets[number].flat.is_cuda and not self._horovod.poll(handle):
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
