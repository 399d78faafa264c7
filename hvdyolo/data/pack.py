"""``hvdyolo pack``: images and labels into shards, a manifest and a label report.

The division into shards depends on the source and the settings alone, so any number of processes or ranks
writes the same bytes. A shard and what the manifest needs to know of it are written when it is done; the
manifest comes last. A packing that was interrupted goes on where it was.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash

from hvdyolo.config import LoaderConfig
from hvdyolo.data.findings import Finding
from hvdyolo.data.format import MANIFEST_NAME, MOST_PIXELS_A_SIDE, VERSION, shard_name
from hvdyolo.data.images import (
    MOST_PIXELS,
    RESAMPLING,
    ImageHeader,
    LoadedImage,
    Pixels,
    encode_jpeg,
    load,
    resize,
)
from hvdyolo.data.lint import REPORT_NAME, check_boxes, summary, write_report
from hvdyolo.data.manifest import Manifest, build_manifest, write_manifest
from hvdyolo.data.order import EpochOrder
from hvdyolo.data.shard import read_shard
from hvdyolo.data.sources.coco import CocoSource
from hvdyolo.data.sources.source import Source, SourceImage
from hvdyolo.data.sources.voc import VocSource
from hvdyolo.data.sources.yolo import YoloSource
from hvdyolo.data.team import Team
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter
from hvdyolo.utils.cores import available_cores
from hvdyolo.utils.errors import DataError, HvdyoloError, InternalError, MismatchError, UsageError
from hvdyolo.utils.files import make_directory, write_json

_SOURCES: dict[str, Callable[[Path, Sequence[str] | None], Source]] = {
    "voc": VocSource,
    "coco": CocoSource,
    "yolo": YoloSource,
}
_WORK = ".packing"
_PLAN = "plan.json"
# Any fixed key: the samples of neighbouring names (a video, a class) must not end up in one shard.
_SHUFFLE_SEED = 0
_BYTES_A_MIB = 1 << 20
_PROGRESS_SECONDS = 10.0
_PRINT_SECONDS = 3.0


@dataclass(frozen=True)
class PackSettings:
    """How images are packed; part of the manifest.

    Attributes:
        max_side: images with a longer side are shrunk to it, pixels; ``None`` keeps all bytes.
        quality: of the JPEGs that are encoded again.
        shard_bytes: of images in a shard, about.
        skip_unreadable: leave out images that cannot be decoded, instead of failing.
        resampling: the rule by which images are shrunk.
    """

    max_side: int | None = None
    quality: int = 95
    shard_bytes: int = 256 << 20
    skip_unreadable: bool = False
    resampling: str = RESAMPLING


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: the images of a split at ``places``, in this order."""

    split: str
    file: str
    number: int
    places: tuple[int, ...]


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
        _tell(_description(packed, options.out, time.monotonic() - started))
    return 0


def pack(
    open_source: Callable[[], Source],
    out: Path,
    settings: PackSettings,
    workers: int,
    rank: int = 0,
    size: int = 1,
) -> Packed | None:
    """Pack all splits of a source into ``out``, with ``workers`` decoding threads a rank.

    Returns:
        What was packed, on rank 0; ``None`` on the others.

    Raises:
        DataError: an image or label cannot be used; names it.
        MismatchError: ``out`` holds something else.
        StorageError: ``out`` cannot be written.
        InternalError: another rank has died.
    """
    work = out / _WORK
    if rank == 0:
        _claim(out)
    try:
        with Team(work, rank, size) as team:
            source = open_source()
            tasks = _agree_on_plan(source, settings, work, rank, team)
            _pack_shards(source, tasks, out, settings, workers, rank, size, team)
            packed = _finish(source, tasks, out, settings, team) if rank == 0 else None
    except BaseException:
        if size == 1 and not (work / _PLAN).exists():
            _abandon(out)
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


def _claim(out: Path) -> None:
    """Make ``out`` and the folder of unfinished work in it.

    Raises:
        MismatchError: there is something else.
    """
    if out.is_dir() and any(out.iterdir()):
        if (out / MANIFEST_NAME).exists():
            raise MismatchError(f"{out} already holds a packed dataset; give another --out or remove it.")
        if not (out / _WORK).is_dir():
            raise MismatchError(f"{out} is not empty and no unfinished packing; give another --out.")
    make_directory(out)
    make_directory(out / _WORK)


def _abandon(out: Path) -> None:
    """Leave no trace of a packing that did not begin."""
    shutil.rmtree(out / _WORK, ignore_errors=True)
    if not any(out.iterdir()):
        out.rmdir()


def _agree_on_plan(
    source: Source, settings: PackSettings, work: Path, rank: int, team: Team
) -> list[ShardTask]:
    """Rank 0 plans, so that all ranks have one plan even of a source that changes meanwhile."""
    listing = _listing(source)
    if rank == 0:
        tasks = _plan(source, settings)
        fingerprint = _fingerprint(source, settings)
        if (work / _PLAN).exists() and _read_plan(work)["fingerprint"] != fingerprint:
            raise MismatchError(
                f"{work.parent} holds an unfinished packing of another source or with other settings; give "
                "another --out or remove it."
            )
        rows = [asdict(task) for task in tasks]
        write_json(work / _PLAN, {"fingerprint": fingerprint, "listing": listing, "tasks": rows})
        team.begin()
        return tasks
    team.await_beginning()
    plan = _read_plan(work)
    if plan["listing"] != listing:
        raise InternalError("The ranks do not see the same images; is the source on a shared file system?")
    return [ShardTask(**{**row, "places": tuple(row["places"])}) for row in plan["tasks"]]


def _read_plan(work: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads((work / _PLAN).read_bytes())
        return plan
    except (OSError, ValueError) as error:
        raise DataError(f"{work / _PLAN} cannot be read ({error}); remove {work} and pack again.") from None


def _listing(source: Source) -> str:
    """Digest of what a plan's numbers refer to."""
    digest = xxhash.xxh3_128(json.dumps(source.names).encode())
    for split, images in source.splits.items():
        digest.update(json.dumps([split, len(images)]).encode())
        for image in images:
            digest.update(image.name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def _fingerprint(source: Source, settings: PackSettings) -> str:
    """What decides the bytes that will be written, as far as names, sizes and times tell."""
    digest = xxhash.xxh3_128(json.dumps([VERSION, source.names, asdict(settings)]).encode())
    for split, images in source.splits.items():
        digest.update(split.encode())
        files = {path: None for image in images for path in (image.path, image.annotation) if path}
        for path in files:
            status = _status(path)
            digest.update(f"{path} {status[0]} {status[1]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _status(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return status.st_size, status.st_mtime_ns


def _plan(source: Source, settings: PackSettings) -> list[ShardTask]:
    for split, images in source.splits.items():
        if not images:
            raise DataError(f"The split '{split}' is empty; leave it out or give it images.")
    return [task for split, images in source.splits.items() for task in _plan_split(split, images, settings)]


def _plan_split(split: str, images: Sequence[SourceImage], settings: PackSettings) -> list[ShardTask]:
    """Divide a split, shuffled once, into shards of about the same number of source bytes."""
    order = EpochOrder(len(images), _SHUFFLE_SEED).sample(0, np.arange(len(images))).tolist()
    sizes = np.array([_status(images[place].path)[0] for place in order])
    count = min(max(1, round(int(sizes.sum()) / settings.shard_bytes)), len(images))
    ends = np.cumsum(sizes)
    # A sample belongs to the shard in which its middle byte lies; a shard that would be empty is left out.
    shard_of = np.minimum((ends - sizes / 2) * count // max(int(ends[-1]), 1), count - 1)
    groups = [np.flatnonzero(shard_of == number) for number in range(count)]
    groups = [group for group in groups if len(group)]
    return [
        ShardTask(split, shard_name(split, number, len(groups)), number, tuple(order[i] for i in group))
        for number, group in enumerate(groups)
    ]


def _pack_shards(
    source: Source,
    tasks: Sequence[ShardTask],
    out: Path,
    settings: PackSettings,
    workers: int,
    rank: int,
    size: int,
    team: Team,
) -> None:
    """This rank's shards: every ``size``-th."""
    progress = _Progress(sum(len(task.places) for task in tasks), rank, team)
    with ThreadPoolExecutor(workers) as pool:
        for task in tasks[rank::size]:
            if _report_path(out, task).exists():
                progress.add(len(task.places))
            else:
                _pack_shard(source, task, out, settings, pool, progress)


class _Progress:
    """Counts images and tells of them now and then; looks after the other ranks meanwhile."""

    def __init__(self, total: int, rank: int, team: Team) -> None:
        self._total = total
        self._rank = rank
        self._team = team
        self._told = time.monotonic()

    def add(self, images: int) -> None:
        """So many more are packed."""
        self._team.add_done(images)
        self.look()

    def look(self) -> None:
        """Tell, if it is time, and fail if another rank did."""
        self._team.check()
        now = time.monotonic()
        if self._rank == 0 and now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            _tell([f"  {self._team.done} of {self._total} images"])


def _pack_shard(
    source: Source,
    task: ShardTask,
    out: Path,
    settings: PackSettings,
    pool: ThreadPoolExecutor,
    progress: _Progress,
) -> None:
    images = source.splits[task.split]
    findings: list[Finding] = []
    boxes = np.zeros(len(source.names), dtype=np.int64)
    source_bytes = 0
    description = ShardDescription(task.split, task.number, source.names, asdict(settings))
    with ShardWriter(out / task.file, description, out / _WORK) as writer:
        # Decoding releases the interpreter's lock; results come in order whatever finishes first.
        for result in pool.map(
            lambda place: _pack_image(source, images[place], place, settings), task.places
        ):
            findings += result.findings
            source_bytes += result.source_bytes
            if result.sample is not None:
                labels = result.sample.labels[:, 0].astype(np.int64)
                boxes += np.bincount(labels, minlength=len(source.names))
                writer.add(result.sample)
            progress.add(1)
    assert writer.record is not None
    write_json(
        _report_path(out, task),
        {
            "record": asdict(writer.record),
            "findings": [asdict(finding) for finding in findings],
            "boxes": boxes.tolist(),
            "source_bytes": source_bytes,
        },
    )


@dataclass(frozen=True)
class _PackedImage:
    sample: Sample | None
    findings: list[Finding]
    source_bytes: int


def _pack_image(source: Source, image: SourceImage, sample_id: int, settings: PackSettings) -> _PackedImage:
    encoded = b""
    try:
        encoded = image.path.read_bytes()
        # Decoded even where the bytes are kept: a broken image is found here, not in the night's training.
        loaded = load(encoded, MOST_PIXELS)
        stored = _stored(source, image, loaded, encoded, settings)
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if not settings.skip_unreadable:
            raise DataError(
                f"{image.path} {reason or error}; repair or remove it, or leave such images out with "
                "--skip-unreadable."
            ) from None
        return _PackedImage(None, [Finding("unreadable", str(image.path), 0, str(reason))], len(encoded))
    labels, flags, found = check_boxes(
        image,
        source.boxes(image, stored.source_width, stored.source_height),
        stored.source_width,
        stored.source_height,
    )
    sample = Sample(
        encoded=stored.encoded,
        format=stored.format,
        width=stored.width,
        height=stored.height,
        source_width=stored.source_width,
        source_height=stored.source_height,
        labels=labels,
        flags=flags,
        name=image.name,
        sample_id=sample_id,
    )
    return _PackedImage(sample, [*stored.findings, *found], len(encoded))


@dataclass(frozen=True)
class _Stored:
    """An image as it goes into the shard; ``source_…`` is what its labels refer to."""

    encoded: bytes
    format: str
    width: int
    height: int
    source_width: int
    source_height: int
    findings: list[Finding]


def _stored(
    source: Source, image: SourceImage, loaded: LoadedImage, encoded: bytes, settings: PackSettings
) -> _Stored:
    header = loaded.header
    stated = source.stated_size(image)
    turn = _needs_turn(header, stated)
    width, height = header.upright_size if turn else (header.width, header.height)
    if max(width, height) > MOST_PIXELS_A_SIDE:
        raise DataError(f"is {width} x {height} pixels, and a side may have {MOST_PIXELS_A_SIDE}")
    findings = []
    if header.exif_orientation != 1:
        done = "turned and encoded again" if turn else "its labels are of the image as stored, kept so"
        findings.append(
            Finding("rotated", str(image.path), 0, f"orientation {header.exif_orientation}, {done}")
        )
    if stated is not None and stated != (width, height):
        detail = f"{stated[0]} x {stated[1]} pixels, and {image.name} has {width} x {height}"
        findings.append(Finding("resolution", str(image.annotation), 0, detail))
    shrink = settings.max_side is not None and max(width, height) > settings.max_side
    if turn or shrink:
        pixels = loaded.pixels(upright=turn)
        if settings.max_side is not None:
            pixels = _shrink(pixels, settings.max_side)
        stored = encode_jpeg(pixels, settings.quality), "JPEG", pixels.shape[1], pixels.shape[0]
    else:
        stored = encoded, header.format, width, height
    if stored[2] * stored[3] > LoaderConfig().max_pixels:
        detail = f"{stored[2]} x {stored[3]} pixels; shrink with --imgsz, or raise loader.max_pixels"
        findings.append(Finding("large", str(image.path), 0, detail))
    return _Stored(*stored, width, height, findings)


def _needs_turn(header: ImageHeader, stated: tuple[int, int] | None) -> bool:
    """Whether to turn an image as its EXIF orientation says.

    Labels are nearly always of the upright image. Where the annotation's size is that of the image as
    stored and not that of the upright one, they were made by a tool that ignores the orientation.
    """
    as_stored = (header.width, header.height)
    return header.exif_orientation != 1 and (stated != as_stored or stated == header.upright_size)


def _shrink(pixels: Pixels, max_side: int) -> Pixels:
    height, width = pixels.shape[:2]
    if max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    return resize(pixels, max(round(width * scale), 1), max(round(height * scale), 1))


def _finish(
    source: Source, tasks: Sequence[ShardTask], out: Path, settings: PackSettings, team: Team
) -> Packed:
    """Wait for all shards, check them as a reader would, and write the report and the manifest."""
    progress = _Progress(sum(len(task.places) for task in tasks), 0, team)
    records: dict[str, list[ShardRecord]] = {split: [] for split in source.splits}
    boxes = {split: dict.fromkeys(source.names, 0) for split in source.splits}
    findings = list(source.findings)
    source_bytes = 0
    for task in tasks:
        report = _await_report(out, task, progress)
        record = ShardRecord(**report["record"])
        read_shard(out, record, len(source.names))
        records[task.split].append(record)
        findings += [Finding(**finding) for finding in report["findings"]]
        source_bytes += report["source_bytes"]
        for name, count in zip(source.names, report["boxes"], strict=True):
            boxes[task.split][name] += count
    images = {split: sum(record.samples for record in records[split]) for split in records}
    for split, count in images.items():
        if count == 0:
            raise DataError(f"The split '{split}' is empty: none of its images can be read.")
    findings.sort(key=lambda finding: (finding.file, finding.line))
    write_report(out, findings, images, boxes)
    manifest = build_manifest(source.names, records, asdict(settings))
    write_manifest(manifest, out)
    return Packed(manifest, tuple(findings), source_bytes)


def _report_path(out: Path, task: ShardTask) -> Path:
    return out / _WORK / f"{task.file}.json"


def _await_report(out: Path, task: ShardTask, progress: _Progress) -> dict[str, Any]:
    """What is known of a shard, once it is written, by whichever rank."""
    path = _report_path(out, task)
    while not path.exists():
        progress.look()
        time.sleep(0.1)
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def _tell(lines: Iterator[str] | Sequence[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
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
        yield f"  {split}: {info.samples} images, {boxes} boxes, {shards}, {total / 2**20:.1f} MiB"
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
    parser.add_argument("--workers", type=int, help="decoding threads a rank (default: all its cores)")
    parser.add_argument("--names", type=lambda text: text.split(","), help="class names, comma-separated")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out broken images")
    options = parser.parse_args(arguments)
    for name in ("imgsz", "shard_mb", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    if not 1 <= options.quality <= 100:
        raise UsageError(f"--quality must be 1 … 100, not {options.quality}.")
    return options
