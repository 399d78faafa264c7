"""One attempt at a run: its lock, its logs, its watchdog and its outcome."""

import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hvdyolo.config import WatchdogConfig
from hvdyolo.distributed.launch import is_lost_peer
from hvdyolo.distributed.watchdog import start_watchdog
from hvdyolo.engine.agreement import on_first_rank
from hvdyolo.engine.job import Job, exit_code_of
from hvdyolo.engine.journal import LOGGER, start_logging
from hvdyolo.engine.run_lock import RunLock
from hvdyolo.utils.errors import HvdyoloError
from hvdyolo.utils.outcome import Outcome, Reason, read_outcome, write_outcome


@dataclass
class Attempt:
    """Which attempt this is and how far it has come; the outcome tells it.

    Attributes:
        detail: why it is done before its last epoch.
    """

    number: int
    step: int = 0
    epoch: int = 0
    detail: str = ""


@contextmanager
def begin_attempt(job: Job, run: Path, settings: WatchdogConfig) -> Iterator[Attempt]:
    """Own ``run`` while the body works, and leave ``outcome.json`` behind whatever happens in it.

    Raises:
        MismatchError: another job owns the run.
    """
    lock: list[RunLock] = []

    def take() -> int:
        lock.append(RunLock.acquire(run, settings.lock_expiry))
        earlier = read_outcome(run)
        return earlier.attempt + 1 if earlier else 1

    attempt = Attempt(on_first_rank(job.comm, "lock run", take))
    world = job.comm.world
    start_logging(world, run)
    watchdog = start_watchdog(job.beacon, world, run, settings.timeout, attempt.number)
    try:
        LOGGER.info(
            "attempt %d, rank %d of %d on %s, process %d",
            attempt.number, world.rank, world.size, world.host, os.getpid(),
        )  # fmt: skip
        yield attempt
        job.comm.barrier("end of run")
        if world.rank == 0:
            _write(run, attempt, world.host, Reason.DONE, 0, attempt.detail)
    except BaseException as error:
        agreed = isinstance(error, HvdyoloError) and error.agreed
        _log_to_file(error)
        # What another rank's end breaks here is no cause: that rank, or nobody, tells the outcome.
        if (world.rank == 0 or not agreed) and not is_lost_peer(error):
            _write(run, attempt, world.host, Reason.of(error), exit_code_of(error), str(error))
        raise
    finally:
        watchdog.stop()
        for held in lock:
            held.release()


def _write(run: Path, attempt: Attempt, host: str, reason: Reason, exit_code: int, detail: str) -> None:
    outcome = Outcome(
        exit_code=exit_code,
        reason=reason,
        detail=detail,
        step=attempt.step,
        epoch=attempt.epoch,
        attempt=attempt.number,
        host=host,
        time=time.time(),
    )
    write_outcome(run, outcome)


def _log_to_file(error: BaseException) -> None:
    """Into this rank's log alone: the command line tells the user."""
    text = str(error) if isinstance(error, HvdyoloError) else "".join(traceback.format_exception(error))
    record = LOGGER.makeRecord(LOGGER.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in LOGGER.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
