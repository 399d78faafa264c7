"""What a run tells: log lines, ``metrics.jsonl`` and ``results.csv``."""

import csv
import io
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvdyolo.distributed.world import World
from hvdyolo.utils.files import make_directory, storage_errors, write_atomically

LOGGER = logging.getLogger("hvdyolo")
_METRICS = "metrics.jsonl"
_RESULTS = "results.csv"
_RESULT_COLUMNS = (
    "epoch", "step", "time", "lr", "box", "objectness", "classification", "images_per_second",
    "wait_percent", "skipped_samples", "skipped_steps", "peak_memory_mb",
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
)  # fmt: skip


def start_logging(world: World, run: Path | None = None) -> None:
    """Send log lines to this rank's file in ``run``, and those of rank 0 to standard output."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for handler in LOGGER.handlers[:]:
        LOGGER.removeHandler(handler)
        handler.close()
    if world.rank == 0:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(console)
    if run is not None:
        path = make_directory(run / "logs") / f"rank-{world.rank:04d}.log"
        with storage_errors(path):
            log = logging.FileHandler(path)
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(log)


class Journal:
    """The machine-readable record of a run; one rank keeps it.

    What a resumed run does again is dropped on opening: entries of steps after ``step`` and, for an epoch may
    be evaluated once more without another step, of epochs that are over from ``epoch`` on.
    """

    def __init__(self, run: Path, step: int, epoch: int) -> None:
        self._metrics = run / _METRICS
        self._results = run / _RESULTS
        kept = [
            entry
            for entry in _read_entries(self._metrics)
            if entry["step"] <= step and (entry["kind"] != "epoch" or entry["epoch"] < epoch)
        ]
        write_atomically(self._metrics, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._rows = [entry for entry in kept if entry["kind"] == "epoch"]
        self._stream = open(self._metrics, "a", buffering=1)  # noqa: SIM115 - closed by close()

    def record(self, kind: str, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        """Add an entry; an ``epoch`` entry is a row of ``results.csv`` too."""
        # JSON knows no NaN.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        entry = {"kind": kind, "step": step, "epoch": epoch, "time": round(time.time(), 3), **finite}
        with storage_errors(self._metrics):
            self._stream.write(json.dumps(entry) + "\n")
        if kind == "epoch":
            self._rows.append(entry)
            write_atomically(self._results, _as_csv(self._rows))

    def close(self) -> None:
        """Close the files."""
        self._stream.close()


def _read_entries(path: Path) -> list[dict[str, Any]]:
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:  # a kill cuts the last line short
            break
    return entries


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _RESULT_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
