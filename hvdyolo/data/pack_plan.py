"""Which image goes into which shard: decided once, by rank 0, from the source and the settings alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

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
    """How images are packed; part of the manifest.

    Attributes:
        max_side: images with a longer side are shrunk to it, pixels; ``None`` keeps all bytes.
        quality: of the JPEGs that are encoded again.
        shard_bytes: of images in a shard, about.
        skip_unreadable: leave out images that cannot be decoded, instead of failing.
        resampling: the rule by which images are shrunk.
        polygons: keep them beside the shards.
    """

    max_side: int | None = None
    quality: int = 95
    shard_bytes: int = 256 << 20
    skip_unreadable: bool = False
    resampling: str = RESAMPLING
    polygons: bool = False

    def of_shards(self) -> dict[str, Any]:
        """As shards and manifest have them, which are the same with and without polygons beside them."""
        values = asdict(self)
        del values["polygons"]
        return values


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: the images of a split at ``places``, in this order.

    Attributes:
        source_bytes: of the images' files.
    """

    split: str
    file: str
    number: int
    places: tuple[int, ...]
    source_bytes: int


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
    runs = divide(sizes, settings.shard_bytes)
    return [
        ShardTask(
            split,
            shard_name(split, number, len(runs)),
            number,
            tuple(order[run.start : run.stop]),
            int(sizes[run.start : run.stop].sum()),
        )
        for number, run in enumerate(runs)
    ]
