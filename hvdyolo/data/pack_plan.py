"""Which image goes into which shard: decided once, by rank 0, from the source and the settings alone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hvdyolo.config import LoaderConfig
from hvdyolo.data.division import divide
from hvdyolo.data.format import VERSION, shard_name
from hvdyolo.data.images import RESAMPLING
from hvdyolo.data.order import EpochOrder
from hvdyolo.data.sources.source import Source, SourceImage
from hvdyolo.utils.errors import DataError, InternalError, MismatchError
from hvdyolo.utils.files import write_json

PLAN_NAME = "plan.json"
# Any fixed key: the samples of neighbouring names (a video, a class) must not end up in one shard.
_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Attributes:
        max_side: images with a longer side are shrunk to it, pixels; ``None`` keeps all bytes.
        quality: of the JPEGs that are encoded again.
        shard_bytes: of images in a shard, about.
        skip_unreadable: leave out images that cannot be decoded or are damaged, instead of failing.
        max_pixels: images with more are refused from their header.
        resampling: the rule by which images are shrunk.
        polygons: keep them beside the shards.
    """

    max_side: int | None = None
    quality: int = 95
    shard_bytes: int = 256 << 20
    skip_unreadable: bool = False
    max_pixels: int = LoaderConfig.max_pixels
    resampling: str = RESAMPLING
    polygons: bool = False

    def of_shards(self) -> dict[str, Any]:
        """As shards and manifest have them: what decides the bytes of the images that are packed.

        A shard is the same with and without polygons beside it, and whatever is done with images that are not
        in it.
        """
        values = asdict(self)
        for name in ("polygons", "skip_unreadable", "max_pixels"):
            del values[name]
        return values


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: the images of a split at ``places``, in this order.

    Attributes:
        source_bytes: of the images' files.
        inputs: digest of what it is made of, as far as names, sizes and times of files tell.
    """

    split: str
    file: str
    number: int
    places: tuple[int, ...]
    source_bytes: int
    inputs: str


def make_plan(source: Source, settings: PackSettings, work: Path) -> list[ShardTask]:
    """Plan, and write the plan into ``work`` for the other ranks.

    Raises:
        DataError: a split is empty, or a file of the source cannot be read.
        MismatchError: ``work`` is that of another packing.
    """
    tasks = _plan(source, settings)
    fingerprint = _fingerprint(source, settings)
    if (work / PLAN_NAME).exists() and _read_plan(work)["fingerprint"] != fingerprint:
        raise MismatchError(
            f"{work.parent} holds an unfinished packing of another source or with other settings; give "
            "another --out or remove it."
        )
    rows = [asdict(task) for task in tasks]
    write_json(work / PLAN_NAME, {"fingerprint": fingerprint, "listing": _listing(source), "tasks": rows})
    return tasks


def follow_plan(source: Source, work: Path) -> list[ShardTask]:
    """The plan that rank 0 wrote into ``work``, which stands even if the source changes meanwhile.

    Raises:
        InternalError: it is of other images than ``source`` has here.
    """
    plan = _read_plan(work)
    if plan["listing"] != _listing(source):
        raise InternalError("The ranks do not see the same images; is the source on a shared file system?")
    return [ShardTask(**{**row, "places": tuple(row["places"])}) for row in plan["tasks"]]


def plan_exists(work: Path) -> bool:
    """Whether a packing has begun in the folder ``work``."""
    return (work / PLAN_NAME).exists()


def _read_plan(work: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads((work / PLAN_NAME).read_bytes())
        return plan
    except (OSError, ValueError) as error:
        raise DataError(
            f"{work / PLAN_NAME} cannot be read ({error}); remove {work} and pack again."
        ) from None


def _listing(source: Source) -> str:
    """Digest of what a plan's numbers refer to."""
    digest = xxhash.xxh3_128(json.dumps(source.names).encode())
    for split, images in source.splits.items():
        digest.update(json.dumps([split, len(images)]).encode())
        for image in images:
            digest.update(image.name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def _fingerprint(source: Source, settings: PackSettings) -> str:
    """Of which images are packed and how; what is in their files, each shard knows of its own."""
    how = [VERSION, source.names, settings.of_shards(), settings.polygons]
    digest = xxhash.xxh3_128(json.dumps(how).encode())
    for split, images in source.splits.items():
        digest.update(json.dumps([split, len(images)]).encode())
        for image in images:
            digest.update(f"{image.path}\n".encode(errors="surrogateescape"))
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
    status_of_labels = lru_cache(1)(_status)  # COCO has one file of them for a split
    found = [_size_and_stamp(images[place], status_of_labels) for place in order]
    sizes = np.array([size for size, _ in found])
    stamps = np.array([stamp for _, stamp in found], dtype=np.uint64)
    runs = divide(len(images), int(sizes.sum()), settings.shard_bytes)
    return [
        ShardTask(
            split,
            shard_name(split, number, len(runs)),
            number,
            tuple(order[run.start : run.stop]),
            int(sizes[run.start : run.stop].sum()),
            xxhash.xxh3_128_hexdigest(stamps[run.start : run.stop].tobytes()),
        )
        for number, run in enumerate(runs)
    ]


def _size_and_stamp(
    image: SourceImage, status_of_labels: Callable[[Path], tuple[int, int]]
) -> tuple[int, int]:
    """Bytes of an image, and a digest of its files, 64 bits. A file is asked for its status once."""
    size, changed = _status(image.path)
    text = f"{image.path} {size} {changed}\n"
    if image.annotation is not None:
        text += "{} {} {}\n".format(image.annotation, *status_of_labels(image.annotation))
    return size, xxhash.xxh3_64_intdigest(text.encode(errors="surrogateescape"))
