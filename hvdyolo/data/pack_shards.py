"""A rank's share of a packing: its shards, one after the other, and what is to be known of each."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdyolo.data.findings import Finding
from hvdyolo.data.pack_image import PackedImage, pack_images
from hvdyolo.data.pack_plan import PackSettings, ShardTask
from hvdyolo.data.polygon_file import PolygonsRecord, write_polygons
from hvdyolo.data.sources.source import Source
from hvdyolo.data.team import Team
from hvdyolo.data.writer import ShardDescription, ShardRecord, ShardWriter
from hvdyolo.utils.files import write_json

_PROGRESS_SECONDS = 10.0
_WAIT_SECONDS = 0.1
_GROUP = 16  # images that a thread packs together


@dataclass(frozen=True)
class ShardReport:
    """A finished shard, for the manifest and the label report.

    Attributes:
        boxes: number of boxes of each class.
        source_bytes: size of its images in the source.
        polygons: the file of them in the folder of unfinished work, if they are kept.
    """

    record: ShardRecord
    findings: tuple[Finding, ...]
    boxes: tuple[int, ...]
    source_bytes: int
    polygons: PolygonsRecord | None


class ShardPacker:
    """Writes shards into ``out``, and its reports of them into ``work``."""

    def __init__(
        self, source: Source, settings: PackSettings, out: Path, work: Path, progress: "Progress"
    ) -> None:
        self._source = source
        self._settings = settings
        self._out = out
        self._work = work
        self._progress = progress

    def pack(self, tasks: Sequence[ShardTask], workers: int) -> None:
        """Make the shards that are not there yet; one is written while the next is decoded.

        Raises:
            HvdyoloError: an image cannot be used, nothing can be written, or another rank failed.
        """
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as storage, ThreadPoolExecutor(workers) as decoders:
            for task in tasks:
                if self._report_path(task).exists():
                    self._progress.add(len(task.places))
                    continue
                images = self._prepare(task, decoders)
                if writing is not None:
                    writing.result()
                writing = storage.submit(self._write, task, images)
            if writing is not None:
                writing.result()

    def await_report(self, task: ShardTask) -> ShardReport:
        """What is known of a shard, once it is written, by whichever rank.

        Raises:
            HvdyoloError: another rank failed.
        """
        path = self._report_path(task)
        while not path.exists():
            self._progress.look()
            time.sleep(_WAIT_SECONDS)
        values: dict[str, Any] = json.loads(path.read_bytes())
        return ShardReport(
            record=ShardRecord(**values["record"]),
            findings=tuple(Finding(**finding) for finding in values["findings"]),
            boxes=tuple(values["boxes"]),
            source_bytes=values["source_bytes"],
            polygons=None if values["polygons"] is None else PolygonsRecord(**values["polygons"]),
        )

    def _prepare(self, task: ShardTask, decoders: ThreadPoolExecutor) -> list[PackedImage]:
        images = self._source.splits[task.split]
        groups = [task.places[first : first + _GROUP] for first in range(0, len(task.places), _GROUP)]
        prepared: list[PackedImage] = []
        # Decoding releases the interpreter's lock; results come in order whatever finishes first.
        for group in decoders.map(
            lambda places: pack_images(
                self._source, [images[place] for place in places], places, self._settings
            ),
            groups,
        ):
            prepared += group
            self._progress.add(len(group))
        return prepared

    def _write(self, task: ShardTask, images: Sequence[PackedImage]) -> None:
        names = self._source.names
        samples = [image.sample for image in images if image.sample is not None]
        description = ShardDescription(task.split, task.number, names, self._settings.of_shards())
        with ShardWriter(self._out / task.file, description, self._work) as writer:
            for sample in samples:
                writer.add(sample)
        assert writer.record is not None
        polygons = None
        if self._settings.polygons:
            entries = [image.polygons for image in images if image.polygons is not None]
            polygons = write_polygons(self._work / f"{task.file}.polygons", self._work, entries)
        labels = np.concatenate([np.zeros(0), *(sample.labels[:, 0] for sample in samples)])
        report = ShardReport(
            record=writer.record,
            findings=tuple(finding for image in images for finding in image.findings),
            boxes=tuple(np.bincount(labels.astype(np.int64), minlength=len(names)).tolist()),
            source_bytes=sum(image.source_bytes for image in images),
            polygons=polygons,
        )
        write_json(self._report_path(task), asdict(report))

    def _report_path(self, task: ShardTask) -> Path:
        return self._work / f"{task.file}.json"


class Progress:
    """Counts images and tells of them now and then; fails when another rank has failed."""

    def __init__(self, total: int, team: Team, tell: Callable[[str], None] | None) -> None:
        """``tell`` is given a line every ten seconds, of all ranks' work."""
        self._total = total
        self._team = team
        self._tell = tell
        self._told = time.monotonic()

    def add(self, images: int) -> None:
        """So many more are packed."""
        self._team.add_done(images)
        self.look()

    def look(self) -> None:
        """Tell, if it is time.

        Raises:
            HvdyoloError: another rank failed.
        """
        self._team.check()
        now = time.monotonic()
        if self._tell is not None and now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            self._tell(f"  {self._team.done} of {self._total} images")
