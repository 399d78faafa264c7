"""Processes that load data for a rank and know nothing of the job it belongs to.

They are forked from a server process (``multiprocessing``'s forkserver), never from the rank: a
fork of a process that uses MPI or InfiniBand crashes. The server, and so every worker,

- has an environment without launcher variables, or anything in it that touches MPI would take
  itself for a rank and abort the job;
- has its own standard streams: ``mpirun`` waits 15 s for a child that holds the rank's;
- has all signals blocked that a launcher or a terminal sends to the whole process group
  (``mpirun`` forwards USR1, the call to save and stop, to children too): the rank decides when
  its workers end;
- does not import the main module: a training script may import horovod at its top;
- ends with the rank, also when that is killed.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, process, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from types import ModuleType

from hvdyolo.utils.freed_memory import keep_freed_memory
from hvdyolo.utils.processes import environment_without_launcher

_GROUP_SIGNALS = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}

_OF_LOADERS = ("torch", "hvdyolo.data.loader", "hvdyolo.data.evaluation_loader")

# By each worker, for the next image. Whether the C library would, by itself, is a matter of the sizes that it
# happens to meet: an eighth of the time of some workers went to pages that were given back and taken anew.
_KEPT_BYTES = 64 << 20

# One thread a worker; and the server, being forked from, must not start any.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def start_worker_server(log: Path | None = None, modules: Sequence[str] = _OF_LOADERS) -> None:
    """Start the server that workers are forked from; does nothing where it runs.

    Call it once, early, from the main thread: standard streams and environment are another's for
    some milliseconds. It imports ``modules`` in the background, once for all workers, and ends with
    this process. What the server and the workers print goes to ``log``, or nowhere.
    """
    if _server_runs():
        return
    with (
        _streams(log or Path(os.devnull)),
        _environment(environment_without_launcher() | _ONE_THREAD),
        _signals_blocked(),
    ):
        # Started by the server's start if not before, but it unblocks the signals as it does.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
        forkserver.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


class WorkerContext(ForkServerContext):
    """A ``multiprocessing`` context whose processes are workers as described above."""

    class Process(ForkServerProcess):
        """A process forked from the server."""

        def run(self) -> None:
            """Work, and end with the rank, however it ends.

            Without this a killed rank leaves its workers for ever: they are the server's children, and the
            server lives as long as they do.
            """
            threading.Thread(target=_end_with_rank, name="end with rank", daemon=True).start()
            keep_freed_memory(os.environ, at_most=_KEPT_BYTES)
            super().run()

        @staticmethod
        def _Popen(process_obj: process.BaseProcess) -> Popen:  # noqa: N802 - overrides
            start_worker_server()
            with _main_module_hidden():
                return ForkServerProcess._Popen(process_obj)


def how_it_ended(exit_code: int) -> str:
    """What to say of a worker that nobody asked to end."""
    if exit_code > 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + (", often for lack of memory" if name == "SIGKILL" else "")


def _end_with_rank() -> None:
    rank = process.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)


def _server_runs() -> bool:
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is None:
        return False
    # The library reaps it; this only looks.
    return os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


@contextmanager
def _streams(path: Path) -> Iterator[None]:
    """Standard input from nowhere, standard output and error to ``path``."""
    kept = [os.dup(stream) for stream in (0, 1, 2)]
    source = os.open(os.devnull, os.O_RDONLY)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for stream, replacement in enumerate((source, target, target)):
            os.dup2(replacement, stream)
        yield
    finally:
        for stream, original in enumerate(kept):
            os.dup2(original, stream)
        for descriptor in (*kept, source, target):
            os.close(descriptor)


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Children inherit the mask; a signal that comes meanwhile is delivered afterwards."""
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep ``multiprocessing`` from running the main module's file again in the child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
