"""``manifest.json``: what is in a packed dataset, and the digests that prove it."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from hvdyolo.data.format import COLUMNS, MANIFEST_NAME, SCHEMA, VERSION, polygons_name, shard_name
from hvdyolo.data.polygon_file import PolygonsRecord
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, MismatchError, StorageError, UsageError
from hvdyolo.utils.files import write_json


@dataclass(frozen=True)
class SplitInfo:
    """One split's shards, in order, and its number of samples.

    Attributes:
        polygons: ``None``: it was packed without.
    """

    shards: tuple[ShardRecord, ...]
    samples: int
    polygons: PolygonsRecord | None = None


@dataclass(frozen=True)
class Manifest:
    """A packed dataset.

    Attributes:
        dataset_id: identity of the content, not of its shards (:mod:`hvdyolo.data.identity`).
        names: class names; a label's class is an index into them.
        settings: how it was packed.
    """

    dataset_id: str
    names: tuple[str, ...]
    splits: Mapping[str, SplitInfo]
    settings: Mapping[str, Any]


def build_manifest(
    dataset_id: str,
    names: tuple[str, ...],
    shards: Mapping[str, list[ShardRecord]],
    settings: Mapping[str, Any],
    polygons: Mapping[str, PolygonsRecord] | None = None,
) -> Manifest:
    """The manifest of freshly written shards, and files of polygons if they are kept."""
    return Manifest(
        dataset_id=dataset_id,
        names=names,
        splits={
            split: SplitInfo(
                tuple(records),
                sum(record.samples for record in records),
                (polygons or {}).get(split),
            )
            for split, records in shards.items()
        },
        settings=dict(settings),
    )


def polygons_of(manifest: Manifest, split: str, root: Path) -> PolygonsRecord:
    """The file of a split's polygons.

    Raises:
        UsageError: it has none.
    """
    record = manifest.splits[split].polygons
    if record is None or record.polygons == 0:
        why = "was packed without --polygons" if record is None else "has boxes alone"
        raise UsageError(
            f"augment.copy_paste needs polygons, and the split '{split}' of {root} {why}: pack data with "
            "polygons, or set augment.copy_paste to 0."
        )
    return record


def write_manifest(manifest: Manifest, root: Path) -> None:
    """Write it; a packed dataset exists from then on."""
    content = {"schema": SCHEMA, "version": VERSION, **asdict(manifest)}
    for split in content["splits"].values():
        if split["polygons"] is None:
            del split["polygons"]
    write_json(root / MANIFEST_NAME, {**content, "digest": _digest(content)})


def read_manifest(root: Path) -> Manifest:
    """The manifest of the dataset in ``root``, checked against its own digest.

    Raises:
        UsageError: there is none.
        MismatchError: it is of another version of the format.
        DataError: it is damaged.
        StorageError: it cannot be read.
    """
    path = root / MANIFEST_NAME
    if not root.is_dir():
        raise UsageError(f"There is no directory {root}; pack a dataset there with hvdyolo pack.")
    if not path.is_file():
        raise UsageError(f"{root} is not a packed dataset: it has no {MANIFEST_NAME}; see hvdyolo pack.")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}.") from None
    try:
        content = json.loads(raw)
        if content["schema"] == SCHEMA and content["version"] != VERSION:
            raise MismatchError(
                f"{root} is packed in format version {content['version']}, this program reads {VERSION}; "
                "pack it again."
            )
        digest = content.pop("digest")
        if content["schema"] != SCHEMA or digest != _digest(content):
            raise ValueError("digest")
        return _manifest(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is damaged; restore it or pack the dataset again.") from None


def _manifest(content: Mapping[str, Any]) -> Manifest:
    """Raises what is caught above if anything is not as it is written here."""
    splits = {}
    for name, split in content["splits"].items():
        # Part of file names and messages.
        if "/" in name or not name.isprintable():
            raise ValueError(name)
        records = tuple(map(ShardRecord.from_json, split["shards"]))
        for number, record in enumerate(records):
            # A name, not a path to elsewhere.
            if record.file != shard_name(name, number, len(records)):
                raise ValueError(record.file)
            _check_shard(record)
        _check_counts(name, split["samples"])
        if split["samples"] != sum(record.samples for record in records):
            raise ValueError(name)
        splits[name] = SplitInfo(
            records,
            split["samples"],
            _polygons(name, split.get("polygons")),
        )
    names = tuple(content["names"])
    if not all(isinstance(name, str) for name in names):
        raise TypeError("names")
    _check_digest(content["dataset_id"])
    return Manifest(content["dataset_id"], names, splits, dict(content["settings"]))


def _check_shard(record: ShardRecord) -> None:
    """Numbers and digests are such, and all that is read of a shard lies in it.

    Raises:
        ValueError, TypeError: they are not, or it does not.
    """
    columns = record.columns
    places = {name: getattr(columns, name) for name in COLUMNS}
    _check_counts(record.file, record.samples, record.boxes, record.bytes, record.data_offset)
    _check_counts(record.file, record.data_bytes, columns.name_bytes, *places.values())
    for digest in (record.digest, columns.digest):
        _check_digest(digest)
    ends = [places[name] + size for name, size in record.column_sizes().items()]
    if max(record.data_offset + record.data_bytes, *ends) > record.bytes:
        raise ValueError(record.file)


def _polygons(split: str, content: Mapping[str, Any] | None) -> PolygonsRecord | None:
    if content is None:
        return None
    record = PolygonsRecord(**content)
    if record.file != polygons_name(split):
        raise ValueError(record.file)
    _check_digest(record.digest)
    _check_counts(record.file, record.bytes, record.polygons)
    return record


def _check_counts(file: str, *counts: int) -> None:
    if not all(type(count) is int and count >= 0 for count in counts):
        raise TypeError(file)


def _check_digest(digest: str) -> None:
    if not re.fullmatch("[0-9a-f]{32}", digest):
        raise ValueError(digest)


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())
