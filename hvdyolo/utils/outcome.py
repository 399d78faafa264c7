"""``outcome.json``: how the last attempt at a run ended, for batch scripts and people."""

import json
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from hvdyolo.utils.errors import (
    DataError,
    MismatchError,
    Preempted,
    StorageError,
    UsageError,
)
from hvdyolo.utils.files import write_json

_NAME = "outcome.json"


class Reason(str, Enum):
    """Why an attempt ended."""

    DONE = "done"
    PREEMPTED = "preempted"
    USAGE = "usage"
    DATA = "data"
    INTERNAL = "internal"
    STORAGE = "storage"
    MISMATCH = "mismatch"
    STALLED = "stalled"

    @classmethod
    def of(cls, error: BaseException) -> "Reason":
        """The reason that ``error`` stands for."""
        reasons: tuple[tuple[type[BaseException], Reason], ...] = (
            (Preempted, cls.PREEMPTED),
            (UsageError, cls.USAGE),
            (DataError, cls.DATA),
            (StorageError, cls.STORAGE),
            (MismatchError, cls.MISMATCH),
        )
        return next((reason for kind, reason in reasons if isinstance(error, kind)), cls.INTERNAL)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        exit_code: as the design lists them.
        detail: one sentence; empty when all epochs are done.
        step, epoch: how far it came.
        attempt: from 1; a requeued job counts on.
        host: where the rank that tells this ran.
        time: seconds since 1970.
    """

    exit_code: int
    reason: Reason
    detail: str
    step: int
    epoch: int
    attempt: int
    host: str
    time: float


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Write it, unless this attempt has one: the first rank to end tells the cause, the rest the effect."""
    earlier = read_outcome(run)
    if earlier is None or earlier.attempt < outcome.attempt:
        write_json(run / _NAME, asdict(outcome))


def read_outcome(run: Path) -> Outcome | None:
    """The last attempt's outcome; ``None`` if there was none or it is unreadable."""
    try:
        values = json.loads((run / _NAME).read_text())
        return Outcome(**{**values, "reason": Reason(values["reason"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
