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

from hvdyolo.data.format import MANIFEST_NAME, VERSION, shard_name
from hvdyolo.data.images import Pixels, decode_upright, encode_jpeg, read_header, resize
from hvdyolo.data.lint import Finding, check_boxes, summary, write_report
from hvdyolo.data.manifest import Manifest, build_manifest, write_manifest
from hvdyolo.data.order import EpochOrder
from hvdyolo.data.sources.coco import CocoSource
from hvdyolo.data.sources.source import Source, SourceImage
from hvdyolo.data.sources.voc import VocSource
from hvdyolo.data.sources.yolo import YoloSource
from hvdyolo.data.writer import Sample, ShardRecord, ShardWriter
from hvdyolo.utils.cores import available_cores
from hvdyolo.utils.errors import DataError, MismatchError, UsageError
from hvdyolo.utils.files import make_directory, write_json

_SOURCES: dict[str, Callable[[Path, Sequence[str] | None], Source]] = {
    "voc": VocSource,
    "coco": CocoSource,
    "yolo": YoloSource,
}
_WORK = ".packing"
# Any fixed key: the samples of neighbouring names (a video, a class) must not end up in one shard.
_SHUFFLE_SEED = 0
_MOST_PIXELS = 178_956_970
_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class PackSettings:
    """How images are packed; part of the manifest.

    Attributes:
        max_side: images with a longer side are shrunk to it, pixels; ``None`` keeps all bytes.
        quality: of the JPEGs that are encoded again.
        shard_bytes: of images in a shard, about.
        skip_unreadable: leave out images that cannot be decoded, instead of failing.
    """

    max_side: int | None = None
    quality: int = 95
    shard_bytes: int = 256 << 20
    skip_unreadable: bool = False


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: the images of a split at ``places``, in this order."""

    split: str
    file: str
    number: int
    places: tuple[int, ...]


def main(arguments: Sequence[str], rank: int = 0, size: int = 1) -> int:
    """The command line; ranks of a parallel launch share the shards out."""
    options = _parse(arguments)
    started = time.monotonic()
    if not options.root.exists():
        raise UsageError(f"--root: there is no {options.root}.")
    source: Source = _SOURCES[options.source](options.root, options.names)
    settings = PackSettings(
        max_side=options.imgsz,
        quality=options.quality,
        shard_bytes=options.shard_mb << 20,
        skip_unreadable=options.skip_unreadable,
    )
    packed = pack(source, options.out, settings, options.workers or available_cores(), rank, size)
    if packed is not None:
        _tell(packed, options.out, time.monotonic() - started)
    return 0


@dataclass(frozen=True)
class Packed:
    """What was packed and found."""

    manifest: Manifest
    findings: tuple[Finding, ...]
    source_bytes: int


def pack(
    source: Source, out: Path, settings: PackSettings, workers: int, rank: int = 0, size: int = 1
) -> Packed | None:
    """Pack all splits of ``source`` into ``out``.

    Returns:
        What was packed, on rank 0; ``None`` on the others.

    Raises:
        DataError: an image or label cannot be used; names it.
        MismatchError: ``out`` holds something else.
        StorageError: ``out`` cannot be written.
    """
    for split, images in source.splits.items():
        if not images:
            raise DataError(f"The split '{split}' is empty; leave it out or give it images.")
    tasks = [task for split, images in source.splits.items() for task in _plan(split, images, settings)]
    if rank == 0:
        _prepare(out, _fingerprint(source, settings))
    with ThreadPoolExecutor(workers) as pool:
        for task in tasks[rank::size]:
            _await(out / _WORK / "plan.json")
            if not _report_path(out, task).exists():
                _pack_shard(source, task, out, settings, pool)
    if rank != 0:
        return None
    reports = [_read_report(out, task) for task in tasks]
    records: dict[str, list[ShardRecord]] = {split: [] for split in source.splits}
    boxes: dict[str, dict[str, int]] = {split: dict.fromkeys(source.names, 0) for split in source.splits}
    for task, report in zip(tasks, reports, strict=True):
        records[task.split].append(ShardRecord(**report["record"]))
        for name, count in zip(source.names, report["boxes"], strict=True):
            boxes[task.split][name] += count
    findings = tuple(Finding(**finding) for report in reports for finding in report["findings"])
    write_report(out, findings, boxes)
    manifest = build_manifest(source.names, records, asdict(settings))
    write_manifest(manifest, out)
    shutil.rmtree(out / _WORK)
    return Packed(manifest, findings, sum(report["source_bytes"] for report in reports))


def _plan(split: str, images: Sequence[SourceImage], settings: PackSettings) -> list[ShardTask]:
    """Divide a split, shuffled once, into shards of about the same number of source bytes."""
    order = EpochOrder(len(images), _SHUFFLE_SEED).sample(0, np.arange(len(images))).tolist()
    try:
        sizes = np.array([images[place].path.stat().st_size for place in order])
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None
    count = max(1, round(int(sizes.sum()) / settings.shard_bytes))
    count = min(count, len(images))
    ends = np.cumsum(sizes)
    # A sample belongs to the shard in which its middle byte lies; every shard gets at least one.
    shard_of = np.minimum((ends - sizes / 2) * count // max(int(ends[-1]), 1), count - 1)
    groups = [np.flatnonzero(shard_of == number) for number in range(count)]
    groups = [group for group in groups if len(group)]
    return [
        ShardTask(split, shard_name(split, number, len(groups)), number, tuple(order[i] for i in group))
        for number, group in enumerate(groups)
    ]


def _pack_shard(
    source: Source, task: ShardTask, out: Path, settings: PackSettings, pool: ThreadPoolExecutor
) -> None:
    images = source.splits[task.split]
    attributes: dict[str, str | int] = {
        "split": task.split,
        "shard": task.number,
        "names": json.dumps(list(source.names)),
        "settings": json.dumps(asdict(settings)),
    }
    findings: list[Finding] = []
    counts = np.zeros(len(source.names), dtype=np.int64)
    source_bytes = 0
    with ShardWriter(out / task.file, attributes) as writer:
        # Decoding releases the interpreter's lock; results come in order whatever finishes first.
        for result in pool.map(
            lambda place: _pack_image(source, images[place], place, settings), task.places
        ):
            findings += result.findings
            source_bytes += result.source_bytes
            if result.sample is not None:
                counts += np.bincount(
                    result.sample.labels[:, 0].astype(np.int64), minlength=len(source.names)
                )
                writer.add(result.sample)
    assert writer.record is not None
    write_json(
        _report_path(out, task),
        {
            "record": asdict(writer.record),
            "findings": [asdict(finding) for finding in findings],
            "boxes": counts.tolist(),
            "source_bytes": source_bytes,
        },
    )


@dataclass(frozen=True)
class _PackedImage:
    sample: Sample | None
    findings: list[Finding]
    source_bytes: int


def _pack_image(source: Source, image: SourceImage, sample_id: int, settings: PackSettings) -> _PackedImage:
    findings: list[Finding] = []
    encoded = b""
    try:
        encoded = image.path.read_bytes()
        header = read_header(encoded)
        # Decoded even when the bytes are kept: a broken image is found here, not in the night's training.
        pixels = decode_upright(encoded, _MOST_PIXELS)
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if not settings.skip_unreadable:
            raise DataError(
                f"{image.path} {reason}; repair or remove it, or leave such images out with --skip-unreadable."
            ) from None
        return _PackedImage(None, [Finding("unreadable", str(image.path), 0, str(reason))], 0)
    height, width = pixels.shape[:2]
    if max(height, width) > np.iinfo(np.uint16).max:
        raise DataError(f"{image.path} is {width} x {height} pixels; a side may have 65535.")
    labels, flags, found = check_boxes(image, source.boxes(image, width, height), width, height)
    findings += found
    if header.exif_orientation != 1:
        findings.append(Finding("rotated", str(image.path), 0, f"orientation {header.exif_orientation}"))
    stored, stored_format = encoded, header.format
    shrunk = _shrink(pixels, settings.max_side)
    if shrunk is not pixels or header.exif_orientation != 1:
        stored, stored_format = encode_jpeg(shrunk, settings.quality), "JPEG"
    sample = Sample(
        encoded=stored,
        format=stored_format,
        width=shrunk.shape[1],
        height=shrunk.shape[0],
        source_width=width,
        source_height=height,
        labels=labels,
        flags=flags,
        name=image.name,
        sample_id=sample_id,
    )
    return _PackedImage(sample, findings, len(encoded))


def _shrink(pixels: Pixels, max_side: int | None) -> Pixels:
    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    return resize(pixels, max(round(width * scale), 1), max(round(height * scale), 1))


def _prepare(out: Path, fingerprint: str) -> None:
    """Make ``out`` ready; an interrupted packing of the same source goes on."""
    plan = out / _WORK / "plan.json"
    if out.is_dir() and any(out.iterdir()):
        if (out / MANIFEST_NAME).exists():
            raise MismatchError(f"{out} already holds a packed dataset; give another --out or remove it.")
        if not plan.exists():
            raise MismatchError(f"{out} is not empty and not a packing of this program; give another --out.")
        if json.loads(plan.read_text())["fingerprint"] != fingerprint:
            raise MismatchError(
                f"{out} holds an unfinished packing of another source or other settings; give another --out."
            )
        return
    make_directory(out)
    make_directory(out / _WORK)
    write_json(plan, {"fingerprint": fingerprint})


def _fingerprint(source: Source, settings: PackSettings) -> str:
    """What decides the bytes that will be written, as far as names and sizes tell."""
    digest = xxhash.xxh3_128(json.dumps([VERSION, list(source.names), asdict(settings)]).encode())
    for split, images in source.splits.items():
        for image in images:
            for path in (image.path, image.annotation):
                if path is not None:
                    status = path.stat()
                    digest.update(f"{split} {path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _report_path(out: Path, task: ShardTask) -> Path:
    return out / _WORK / f"{task.file}.json"


def _read_report(out: Path, task: ShardTask) -> dict[str, Any]:
    """What is known of a shard, once it is written, by whichever rank."""
    path = _report_path(out, task)
    _await(path)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def _await(path: Path) -> None:
    """Wait for another rank's file; should that rank fail, the launcher ends this one too."""
    while not path.exists():
        time.sleep(_WAIT_SECONDS)


def _tell(packed: Packed, out: Path, seconds: float) -> None:
    for line in _description(packed, out, seconds):
        sys.stdout.write(line + "\n")


def _description(packed: Packed, out: Path, seconds: float) -> Iterator[str]:
    yield f"packed into {out} in {seconds:.1f} s, dataset {packed.manifest.dataset_id}"
    yield f"  classes: {', '.join(packed.manifest.names)}"
    stored = 0
    for split, info in packed.manifest.splits.items():
        total = sum(record.bytes for record in info.shards)
        stored += sum(record.data_bytes for record in info.shards)
        boxes = sum(record.boxes for record in info.shards)
        yield (
            f"  {split}: {info.samples} images, {boxes} boxes, {len(info.shards)} shards, "
            f"{total / 2**20:.1f} MiB"
        )
    if packed.manifest.settings["max_side"] is not None and packed.source_bytes:
        saved = 1 - stored / packed.source_bytes
        yield f"  images take {saved:.0%} less than in the source"
    if packed.findings:
        yield f"labels, in full in {out / 'lint.txt'}:"
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
    parser.add_argument("--workers", type=int, help="decoding threads (default: all cores)")
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
