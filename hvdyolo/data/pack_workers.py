"""Processes that make a rank's shards, each one at a time: threads would take turns at Python's lock."""

import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import cast

from hvdyolo.data.pack_progress import Progress
from hvdyolo.data.pack_shard import ShardOrder, make_shard
from hvdyolo.data.workers import WorkerContext, how_it_ended, start_worker_server
from hvdyolo.utils.errors import HvdyoloError, InternalError

_LOOK_SECONDS = 1.0


class PackWorkers:
    """Some processes, which live as long as the ``with`` block.

    Each has a pipe to the rank, which sends it orders. It answers by numbers of images that are done, by
    ``None`` when the shard is, by its error, or by the traceback of a bug. A rank that wants no more hangs
    up; the worker notices with its next answer, tidies up and ends.
    """

    def __init__(self, count: int) -> None:
        start_worker_server(modules=[__name__])
        context = WorkerContext()
        self._workers: dict[Connection, WorkerContext.Process] = {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), name="packing")
            process.start()
            theirs.close()  # or its end would not be noticed
            self._workers[ours] = process

    def make(self, orders: Iterator[ShardOrder], progress: Progress) -> None:
        """Have shards made, at most one at a time by a worker.

        Raises:
            HvdyoloError: of the first worker that failed, or another rank has failed.
            InternalError: a worker died.
        """
        busy: list[Connection] = []
        for connection, first in zip(self._workers, orders, strict=False):
            self._send(connection, first)
            busy.append(connection)
        while busy:
            for connection in cast(list[Connection], wait(busy, _LOOK_SECONDS)):
                done = self._receive(connection)
                if done is not None:
                    progress.add(done)
                elif (order := next(orders, None)) is not None:
                    self._send(connection, order)
                else:
                    busy.remove(connection)
            progress.look()

    def __enter__(self) -> "PackWorkers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._workers:
            connection.close()
        for process in self._workers.values():
            process.join()

    def _send(self, connection: Connection, order: ShardOrder) -> None:
        try:
            connection.send(order)
        except OSError:
            raise self._death(connection) from None

    def _receive(self, connection: Connection) -> int | None:
        try:
            answer: int | HvdyoloError | str | None = connection.recv()
        except (EOFError, OSError):
            raise self._death(connection) from None
        if isinstance(answer, HvdyoloError):
            raise answer
        if isinstance(answer, str):
            raise RuntimeError(f"A packing process failed.\n\n{answer}")
        return answer

    def _death(self, connection: Connection) -> InternalError:
        process = self._workers[connection]
        process.join()
        assert process.exitcode is not None
        return InternalError(
            f"A packing process ({process.pid}) {how_it_ended(process.exitcode)}: give the job more memory "
            "or lower --workers; the same command goes on where it was."
        )


def _work(rank: Connection) -> None:
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the rank has hung up
        while True:
            rank.send(_answer(rank.recv(), rank))


def _answer(order: ShardOrder, rank: Connection) -> HvdyoloError | str | None:
    try:
        make_shard(order, rank.send)
    except HvdyoloError as error:
        return error
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        return traceback.format_exc()
    return None
