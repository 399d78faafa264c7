"""``hvdyolo pack``: images and labels into shards, a manifest and a label report.

The division into shards depends on the source and the settings alone, so any number of processes or ranks
writes the same bytes. A shard and what the manifest needs to know of it are written when it is done; the
manifest comes last. A packing that was interrupted goes on where it was.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

from hvdyolo.data.findings import Finding
from hvdyolo.data.format import MANIFEST_NAME, polygons_name
from hvdyolo.data.images import MOST_PIXELS
from hvdyolo.data.label_losses import check_losses
from hvdyolo.data.lint import REPORT_NAME, summary, write_report
from hvdyolo.data.manifest import Manifest, build_manifest, write_manifest
from hvdyolo.data.pack_output import WORK, abandon_output, claim_output
from hvdyolo.data.pack_plan import PackSettings, ShardTask, follow_plan, make_plan, plan_exists
from hvdyolo.data.pack_progress import Progress
from hvdyolo.data.pack_resume import discard_outdated
from hvdyolo.data.pack_shards import ShardPacker
from hvdyolo.data.polygon_file import PolygonsRecord, join_polygons
from hvdyolo.data.read_back import read_back
from hvdyolo.data.sources.coco import CocoSource
from hvdyolo.data.sources.source import Source
from hvdyolo.data.sources.voc import VocSource
from hvdyolo.data.sources.yolo import YoloSource
from hvdyolo.data.team import Team
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.cores import available_cores
from hvdyolo.utils.errors import DataError, HvdyoloError, UsageError

_SOURCES: dict[str, Callable[[Path, Sequence[str] | None], Source]] = {
    "voc": VocSource,
    "coco": CocoSource,
    "yolo": YoloSource,
}
_BYTES_A_MIB = 1 << 20
_PRINT_SECONDS = 3.0


@dataclass(frozen=True)
class Packed:
    """What was packed and found."""

    manifest: Manifest
    findings: tuple[Finding, ...]
    source_bytes: int


def main(arguments: Sequence[str], rank: int = 0, size: int = 1) -> int:
    """The command line; ranks of a parallel launch share the shards out."""
    try:
        options = _parse(arguments)
    except HvdyoloError:
        if rank != 0:
            # Rank 0 says the same and alone prints; the launcher ends it once another rank has ended.
            time.sleep(_PRINT_SECONDS)
        raise
    started = time.monotonic()
    settings = PackSettings(
        max_side=options.imgsz,
        quality=options.quality,
        shard_bytes=options.shard_mb * _BYTES_A_MIB,
        skip_unreadable=options.skip_unreadable,
        max_pixels=options.max_pixels,
        polygons=options.polygons,
    )
    packed = pack(
        lambda: _open_source(options.source, options.root, options.names),
        options.out,
        settings,
        options.workers or available_cores(),
        rank,
        size,
    )
    if packed is not None:
        for line in _description(packed, options.out, time.monotonic() - started):
            _tell(line)
    return 0


def pack(
    open_source: Callable[[], Source],
    out: Path,
    settings: PackSettings,
    workers: int,
    rank: int = 0,
    size: int = 1,
) -> Packed | None:
    """Pack all splits of a source into ``out``, with up to ``workers`` processes a rank.

    Returns:
        What was packed, on rank 0; ``None`` on the others.

    Raises:
        DataError: an image, or most of the labels, cannot be used; names them.
        MismatchError: ``out`` holds something else.
        StorageError: ``out`` cannot be written.
        InternalError: another rank has died.
    """
    work = out / WORK
    made = claim_output(out) if rank == 0 else []
    try:
        with Team(work, rank, size) as team:
            source = open_source()
            if rank == 0:
                tasks = make_plan(source, settings, work)
                discard_outdated(out, work, tasks, settings)
                team.begin()
            elif team.await_beginning(is_over=(out / MANIFEST_NAME).exists):
                tasks = follow_plan(source, work)
            else:
                return None
            images = sum(len(task.places) for task in tasks)
            progress = Progress(images, team, _tell if rank == 0 else None)
            packer = ShardPacker(source, settings, out, work, progress)
            packer.pack(tasks[rank::size], workers)
            packed = _finish(source, tasks, packer, out, settings, team) if rank == 0 else None
    except BaseException:
        if size == 1 and not plan_exists(work):
            abandon_output(out, made)
        raise
    if rank == 0:
        shutil.rmtree(work, ignore_errors=True)
    return packed


def _open_source(layout: str, root: Path, names: Sequence[str] | None) -> Source:
    if not root.exists():
        raise UsageError(f"--root: there is no {root}.")
    try:
        return _SOURCES[layout](root, names)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None


def _finish(
    source: Source,
    tasks: Sequence[ShardTask],
    packer: ShardPacker,
    out: Path,
    settings: PackSettings,
    team: Team,
) -> Packed:
    """Wait for all shards, check them as a reader would, and write report and manifest."""
    records: dict[str, list[ShardRecord]] = {split: [] for split in source.splits}
    boxes = {split: dict.fromkeys(source.names, 0) for split in source.splits}
    found = {split: list(source.lost.get(split, ())) for split in source.splits}
    source_bytes = 0
    parts: dict[str, list[PolygonsRecord]] = {split: [] for split in source.splits}
    for task in tasks:
        report = packer.await_report(task)
        records[task.split].append(report.record)
        found[task.split] += report.findings
        source_bytes += report.source_bytes
        if report.polygons is not None:
            parts[task.split].append(report.polygons)
        for name, count in zip(source.names, report.boxes, strict=True):
            boxes[task.split][name] += count
    images = {split: sum(record.samples for record in records[split]) for split in records}
    findings = _sorted([*source.findings, *chain.from_iterable(found.values())])
    write_report(out, findings, images, boxes)
    for split, count in images.items():
        lost = _sorted(found[split])
        check_losses(split, lost, count, sum(boxes[split].values()), out / REPORT_NAME)
        if count == 0:
            raise DataError(f"The split '{split}' is empty: none of its images can be read.")
    team.check()  # a rank may have failed at something that no shard was waited for
    work = out / WORK
    polygons = {
        split: join_polygons(out / polygons_name(split), work, parts[split])
        for split in (source.splits if settings.polygons else ())
    }
    dataset_id = read_back(out, source.names, records, polygons)
    manifest = build_manifest(dataset_id, source.names, records, settings.of_shards(), polygons)
    write_manifest(manifest, out)
    return Packed(manifest, tuple(findings), source_bytes)


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: (finding.file, finding.line))


def _tell(line: str) -> None:
    # File names may be no UTF-8.
    sys.stdout.write(line.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


def _description(packed: Packed, out: Path, seconds: float) -> Iterator[str]:
    yield f"packed into {out} in {seconds:.1f} s, dataset {packed.manifest.dataset_id}"
    yield f"  classes: {', '.join(packed.manifest.names)}"
    stored = 0
    for split, info in packed.manifest.splits.items():
        total = sum(record.bytes for record in info.shards)
        stored += sum(record.data_bytes for record in info.shards)
        boxes = sum(record.boxes for record in info.shards)
        shards = f"{len(info.shards)} shard{'s' if len(info.shards) > 1 else ''}"
        kept = f", {info.polygons.polygons} polygons" if info.polygons is not None else ""
        yield f"  {split}: {info.samples} images, {boxes} boxes{kept}, {shards}, {total / 2**20:.1f} MiB"
    if packed.manifest.settings["max_side"] is not None and packed.source_bytes:
        saved = 1 - stored / packed.source_bytes
        yield f"  images take {saved:.0%} less than in the source"
    yield f"label report, in full in {out / REPORT_NAME}:"
    yield from summary(packed.findings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("pack", description="Pack images and labels into shards.", allow_abbrev=False)
    parser.add_argument("--source", required=True, choices=sorted(_SOURCES), help="layout of the source")
    parser.add_argument("--root", required=True, type=Path, help="the source; it is only read")
    parser.add_argument("--out", required=True, type=Path, help="the packed dataset")
    parser.add_argument("--imgsz", type=int, help="shrink images to this longest side, pixels")
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs encoded again (default: 95)")
    parser.add_argument("--shard-mb", type=int, default=256, help="MiB of images a shard (default: 256)")
    parser.add_argument(
        "--workers", type=int, help="processes a rank, one a shard at most (default: all its cores)"
    )
    parser.add_argument("--names", type=lambda text: text.split(","), help="class names, comma-separated")
    parser.add_argument("--polygons", action="store_true", help="keep them, for augment.copy_paste")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out broken images")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=PackSettings.max_pixels,
        help=f"refuse larger images (default: {PackSettings.max_pixels}, that of training)",
    )
    options = parser.parse_args(arguments)
    for name in ("imgsz", "shard_mb", "workers", "max_pixels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    if options.polygons and options.source == "voc":
        raise UsageError("--polygons: annotations of VOC have boxes alone; leave it out.")
    if options.max_pixels > MOST_PIXELS:
        raise UsageError(f"--max-pixels must be at most {MOST_PIXELS}, not {options.max_pixels}.")
    if not 1 <= options.quality <= 100:
        raise UsageError(f"--quality must be 1 … 100, not {options.quality}.")
    return options
