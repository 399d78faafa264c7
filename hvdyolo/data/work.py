"""Running tasks of a dataset in worker processes, in order, with errors that reach the consumer."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from hvdyolo.data.workers import WorkerContext, how_it_ended
from hvdyolo.utils.errors import HvdyoloError, InternalError

TaskT_contra = TypeVar("TaskT_contra", contravariant=True)
TaskT = TypeVar("TaskT")
ResultT_co = TypeVar("ResultT_co", covariant=True)
ResultT = TypeVar("ResultT")


class Work(Protocol[TaskT_contra, ResultT_co]):
    """What the workers do; picklable."""

    def __call__(self, task: TaskT_contra, /) -> ResultT_co:
        """Do one task."""
        ...


class WorkResults(Iterator[ResultT], Generic[TaskT, ResultT]):
    """Results of tasks in their order; worker w of W does every W-th task, from the w-th on.

    Errors that explain themselves (:class:`HvdyoloError`) come out as they were raised in the
    worker; others with the worker's traceback in their message. The workers end with the last
    result, with the first error, and with :meth:`close`.
    """

    def __init__(
        self, work: Work[TaskT, ResultT], tasks: Iterable[TaskT], *, workers: int, prefetch: int
    ) -> None:
        """Start the workers; each may be ``prefetch`` tasks ahead.

        0 workers: the tasks are done in this process, when their results are asked for.
        """
        self._results: Iterator[ResultT | _Failure]
        self._processes: Any = None
        if workers == 0:
            self._results = (work(task) for task in tasks)
            return
        with warnings.catch_warnings():
            # How many workers is the caller's decision; torch counts the cores otherwise.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader: DataLoader[ResultT | _Failure] = DataLoader(
                _Tasks(work),  # type: ignore[arg-type]  # it asks for no more than __getitem__
                batch_size=None,
                sampler=tasks,
                num_workers=workers,
                prefetch_factor=prefetch,
                collate_fn=_unchanged,
                multiprocessing_context=WorkerContext(),
                # Its seed for the workers would otherwise be drawn from the global generator.
                generator=torch.Generator(),
            )
            self._results = self._processes = iter(loader)

    def __next__(self) -> ResultT:
        """The next result.

        Raises:
            InternalError: a worker died; noticed within about 5 s.
        """
        try:
            result = next(self._results)
            if isinstance(result, _Failure):
                raise result.error
        except BaseException as error:
            dead = self._dead_workers() if isinstance(error, RuntimeError) else ""
            self.close()
            if dead:
                raise InternalError(dead) from error
            raise
        return result

    def close(self) -> None:
        """End the workers and wait for them; asking for more results then ends the iteration."""
        processes, self._processes, self._results = self._processes, None, iter(())
        if processes is None:
            return
        # Private, but the garbage collector comes late where a traceback still holds the iterator.
        processes._shutdown_workers()
        for worker in processes._workers:
            worker.kill()
            worker.join()

    def kill(self) -> None:
        """End the workers at once; another thread that waits for a result gets an error within about 5 s."""
        processes = self._processes
        for worker in () if processes is None else processes._workers:
            worker.kill()

    def _dead_workers(self) -> str:
        if self._processes is None:
            return ""
        for number, worker in enumerate(self._processes._workers):
            if worker.exitcode is None or worker.exitcode == 0:
                continue
            return (
                f"loader worker {number} (process {worker.pid}) {how_it_ended(worker.exitcode)}: "
                "give the job more memory or lower loader.workers."
            )
        return ""


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker: torch would rebuild it with a traceback for a message."""

    error: HvdyoloError


@dataclass(frozen=True)
class _Tasks(Generic[TaskT, ResultT]):
    """The work as torch wants it."""

    work: Work[TaskT, ResultT]

    def __getitem__(self, task: TaskT) -> ResultT | _Failure:
        try:
            return self.work(task)
        except HvdyoloError as error:
            return _Failure(error)


def _unchanged(result: ResultT) -> ResultT:
    return result
