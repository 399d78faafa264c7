"""Batch detection: every image of a source gets exactly one record, whatever happens on the way.

The source is cut into chunks; whoever is free claims one (:mod:`hvdyolo.engine.claims`), detects and commits
its part (:mod:`hvdyolo.engine.parts`). So ranks, array tasks and several jobs work on one output without
talking to each other, and the same command finishes what a kill left. Ranks meet at the start, to agree on
the plan, and at the end.

A rank works in lanes, threads with one torch thread each, every one on its own chunk: one lane reads and
decodes while others compute, and the bits of a detection do not depend on the number of cores.
"""

import time
import warnings
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch

from hvdyolo.config import Config, DetectConfig
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.device import choose_device
from hvdyolo.distributed.watchdog import Beacon
from hvdyolo.engine.agreement import on_first_rank
from hvdyolo.engine.chunk_detection import detect_batch
from hvdyolo.engine.claims import CLAIMS_DIRECTORY, Claims
from hvdyolo.engine.detection_pictures import PICTURES_DIRECTORY, draw_pictures
from hvdyolo.engine.detection_progress import ProgressDisplay
from hvdyolo.engine.detection_setup import DetectionWork, set_up
from hvdyolo.engine.detection_status import DetectionTotals, count_parts
from hvdyolo.engine.job import open_job
from hvdyolo.engine.journal import LOGGER, start_logging
from hvdyolo.engine.lanes import Tally, run_lanes
from hvdyolo.engine.parts import Failed, Parts, Record
from hvdyolo.engine.preemption import StopRequest
from hvdyolo.engine.worklist import claimed_chunks
from hvdyolo.utils.create_once import remove_leftovers
from hvdyolo.utils.errors import DataError, Preempted, UsageError
from hvdyolo.utils.files import storage_errors

# Beyond this many, lanes wait for the interpreter's lock more than they gain: start more ranks, or jobs.
# Beside a GPU they do little but what holds it: an H200 detected 388 images a second with 4, 262 with 12.
_MOST_LANES = {"cpu": 16, "cuda": 4}
_WATCH_INTERVAL = 0.5


@dataclass(frozen=True)
class DetectionSummary:
    """A finished output, and what this run of the command did for it.

    Attributes:
        total: what is in the output.
        images_now: images done by this run, over all its ranks.
        seconds: from the agreement on the plan to the last part.
    """

    total: DetectionTotals
    images_now: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Speed of this run."""
        return self.images_now / max(self.seconds, 1e-9)


def detect(
    config: Config, weights: Path, source: Path, out: Path, max_bad: float, *, dry_run: bool = False
) -> None:
    """The command ``hvdyolo detect`` on all its ranks; ``dry_run`` checks everything and writes nothing."""
    with open_job(config) as job:
        start_logging(job.comm.world)
        # What is wrong with an image is in its record; of millions, Pillow's remarks would fill the log.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if dry_run:
            work = set_up(job.comm, weights, source, out, config.detect, job.device, write=False)
            LOGGER.info("%d images in %d chunks to detect", work.plan.images, work.plan.chunks)
            return
        run_detection(
            job.comm, weights, source, out, config.detect, max_bad, job.beacon,
            device=job.device, lanes=config.distributed.threads or job.cores, stop=StopRequest(),
        )  # fmt: skip


def run_detection(
    comm: Communicator,
    weights: Path,
    source: Path,
    out: Path,
    settings: DetectConfig,
    max_bad: float,
    beacon: Beacon,
    *,
    device: torch.device | None = None,
    lanes: int = 1,
    stop: StopRequest | None = None,
) -> DetectionSummary:
    """Detect on every image of ``source`` that ``out`` has no record of yet.

    Args:
        comm: of the ranks that start together; others may work on the same ``out``.
        weights: safetensors file.
        source: directory of images, text file that lists images, packed data or ``PACKED_DIR/SPLIT``.
        out: where parts go; what is there already stays.
        settings: of the detector and the chunks.
        max_bad: largest fraction of images that may be unusable, 0 … 1.
        beacon: is beaten as the work goes on.
        device: where to compute; this rank's GPU by default, or the CPU.
        lanes: cores this rank may use.
        stop: asks for an early end.

    Raises:
        DataError: more than ``max_bad`` of the images are unusable; everything else is done.
        Preempted: ``stop`` was requested; the same command goes on.
        HvdyoloError: see :func:`hvdyolo.engine.detection_setup.set_up`.
    """
    if not 0 <= max_bad <= 1:
        error = UsageError(f"--max-bad is a fraction, 0 … 1, not {max_bad}.")
        error.agreed = True
        raise error
    beacon.beat("set up", 0)
    work = set_up(comm, weights, source, out, settings, device or choose_device(comm.world), write=True)
    parts = Parts(out, work.plan)
    started = time.monotonic()
    tally = Tally()
    stopped = _work(comm, work, parts, settings, tally, beacon, lanes, stop)
    beacon.beat("wait for other ranks", tally.signs_of_life)
    shares = comm.gather_objects("work done", (stopped, tally.images))
    if any(stopped for stopped, _ in shares):
        raise Preempted(f"Stopped on request; the same command finishes {out}.")
    images_now = sum(images for _, images in shares)
    seconds = time.monotonic() - started
    beacon.beat("finish", tally.signs_of_life)
    return on_first_rank(
        comm,
        "finish",
        lambda: _finish(work, parts, settings, max_bad, images_now, seconds),
    )


def _work(
    comm: Communicator,
    work: DetectionWork,
    parts: Parts,
    settings: DetectConfig,
    tally: Tally,
    beacon: Beacon,
    lanes: int,
    stop: StopRequest | None,
) -> bool:
    """Take part until all is done; true if a request to stop came first."""
    halt = Event()
    display = ProgressDisplay(parts, work.plan) if comm.world.rank == 0 else None
    watch = _Watch(tally, beacon, display, stop, halt)
    try:
        with Claims(work.out / CLAIMS_DIRECTORY, settings.claim_expiry) as claims:
            run_lanes(
                min(lanes, _MOST_LANES[work.detector.device.type]),
                lambda: _lane(work, parts, claims, tally, halt),
                watch.look,
                halt,
                _WATCH_INTERVAL,
            )
    finally:
        if display is not None:
            display.close()
    return watch.stopped


class _Watch:
    """What the main thread of a rank does while its lanes work."""

    def __init__(
        self,
        tally: Tally,
        beacon: Beacon,
        display: ProgressDisplay | None,
        stop: StopRequest | None,
        halt: Event,
    ) -> None:
        self.stopped = False
        self._tally = tally
        self._beacon = beacon
        self._display = display
        self._stop = stop
        self._halt = halt
        self._last_sign = -1

    def look(self) -> None:
        if self._stop is not None and self._stop.requested:
            self.stopped = True
            self._halt.set()
        # Only for what the lanes have done: a beat of this thread alone would hide that they hang.
        if self._tally.signs_of_life != self._last_sign:
            self._last_sign = self._tally.signs_of_life
            self._beacon.beat("detect", self._last_sign)
        if self._display is not None:
            self._display.show()


def _lane(work: DetectionWork, parts: Parts, claims: Claims, tally: Tally, halt: Event) -> None:
    """Detect on one chunk after the other."""
    with closing(claimed_chunks(parts, work.plan.chunks, claims, halt, lambda: tally.add(0))) as chunks:
        for chunk in chunks:
            ids, names = work.plan.ids(chunk), work.images.names(chunk)
            records: list[Record] = []
            for first in range(0, len(ids), work.detector.batch):
                if halt.is_set():
                    return
                batch = slice(first, first + work.detector.batch)
                records += detect_batch(work.detector, work.source, ids[batch], names[batch])
                tally.add(len(ids[batch]))
            parts.commit(chunk, records)


def _finish(
    work: DetectionWork,
    parts: Parts,
    settings: DetectConfig,
    max_bad: float,
    images_now: int,
    seconds: float,
) -> DetectionSummary:
    """Count, draw, tidy and tell; one rank does it."""
    summary = DetectionSummary(count_parts(parts), images_now, seconds)
    pictures = draw_pictures(work, parts, settings.pictures)
    _tidy(work, parts)
    total = summary.total
    LOGGER.info("%d images, %d boxes, %d bad images in %s", total.images, total.boxes, total.errors, work.out)
    LOGGER.info("%d images now, in %.1f s, %.1f images/s", images_now, seconds, summary.images_per_second)
    if pictures:
        LOGGER.info("%d pictures in %s", len(pictures), work.out / PICTURES_DIRECTORY)
    if total.errors > max_bad * total.images:
        raise DataError(
            f"{total.errors} of {total.images} images are unusable, more than --max-bad {max_bad}, "
            f"the first one {_first_failure(work, parts)}; all others are done."
        )
    return summary


def _tidy(work: DetectionWork, parts: Parts) -> None:
    """Remove what the killed left behind; nothing of it means anything once every part is there."""
    with storage_errors(work.out):
        for claim in (work.out / CLAIMS_DIRECTORY).glob("chunk-*"):
            claim.unlink(missing_ok=True)
        remove_leftovers(parts.directory)
        remove_leftovers(work.out)


def _first_failure(work: DetectionWork, parts: Parts) -> str:
    for chunk in range(work.plan.chunks):
        if parts.totals(chunk).errors:
            for record in parts.records(chunk):
                if isinstance(record, Failed):
                    return f"{record.image} ({record.error}: {record.detail})"
    raise AssertionError("the parts count failures and have none")
