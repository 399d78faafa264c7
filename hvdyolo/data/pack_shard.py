"""Making one shard: its images are checked, labelled and written, and what was found is told in a report."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdyolo.data.findings import Finding
from hvdyolo.data.pack_image import pack_images
from hvdyolo.data.pack_plan import PackSettings, ShardTask
from hvdyolo.data.polygon_file import PolygonsRecord, write_polygons
from hvdyolo.data.sources.source import Labels, SourceImage
from hvdyolo.data.writer import ShardDescription, ShardRecord, ShardWriter
from hvdyolo.utils.files import write_json

_GROUP = 16  # images that are packed together


@dataclass(frozen=True)
class ShardOrder:
    """Everything that it takes to make a shard, in whichever process.

    Attributes:
        images: of the task, in its order.
        labels: of these images.
        names: of the classes.
        work: folder of unfinished work.
        report: the file that tells the shard is done, and what is to be known of it.
    """

    task: ShardTask
    images: Sequence[SourceImage]
    labels: Labels
    names: tuple[str, ...]
    settings: PackSettings
    out: Path
    work: Path
    report: Path


@dataclass(frozen=True)
class ShardReport:
    """A finished shard, for the manifest and the label report.

    Attributes:
        boxes: number of boxes of each class.
        source_bytes: size of its images in the source.
        inputs: of its task.
        max_pixels: by which it was decided which images are too large.
        polygons: the file of them in the folder of unfinished work, if they are kept.
    """

    record: ShardRecord
    findings: tuple[Finding, ...]
    boxes: tuple[int, ...]
    source_bytes: int
    inputs: str
    max_pixels: int
    polygons: PolygonsRecord | None


def report_path(work: Path, file: str) -> Path:
    """Where the report of a shard lies once it is done."""
    return work / f"{file}.json"


def read_report(path: Path) -> ShardReport:
    """A report that :func:`make_shard` has written.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError: it is of another version.
    """
    values: dict[str, Any] = json.loads(path.read_bytes())
    polygons = values["polygons"]
    return ShardReport(
        record=ShardRecord.from_json(values["record"]),
        findings=tuple(Finding(**finding) for finding in values["findings"]),
        boxes=tuple(values["boxes"]),
        source_bytes=values["source_bytes"],
        inputs=values["inputs"],
        max_pixels=values["max_pixels"],
        polygons=None if polygons is None else PolygonsRecord(**polygons),
    )


def make_shard(order: ShardOrder, tell: Callable[[int], None]) -> None:
    """Write a shard and its report; nothing is left of one that fails.

    Args:
        tell: is given a number of images whenever so many more are done; what it raises ends the work.

    Raises:
        HvdyoloError: an image or its labels cannot be used, or nothing can be written.
    """
    task, settings = order.task, order.settings
    findings: list[Finding] = []
    boxes = np.zeros(len(order.names), dtype=np.int64)
    entries: list[bytes] = []
    source_bytes = 0
    description = ShardDescription(task.split, task.number, order.names, settings.of_shards())
    with warnings.catch_warnings(), ShardWriter(order.out / task.file, description, order.work) as writer:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image is in the report
        for first in range(0, len(order.images), _GROUP):
            group = slice(first, first + _GROUP)
            packed = pack_images(order.labels, order.images[group], task.places[group], settings)
            for image in packed:
                findings += image.findings
                source_bytes += image.source_bytes
                if image.polygons is not None:
                    entries.append(image.polygons)
                if image.sample is not None:
                    writer.add(image.sample)
                    boxes += np.bincount(image.sample.labels[:, 0].astype(np.int64), minlength=len(boxes))
            tell(len(packed))
    assert writer.record is not None
    polygons = None
    if settings.polygons:
        polygons = write_polygons(order.work / f"{task.file}.polygons", order.work, entries)
    report = ShardReport(
        record=writer.record,
        findings=tuple(findings),
        boxes=tuple(boxes.tolist()),
        source_bytes=source_bytes,
        inputs=task.inputs,
        max_pixels=settings.max_pixels,
        polygons=polygons,
    )
    write_json(order.report, asdict(report))
