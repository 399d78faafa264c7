"""``manifest.json``: what is in a packed dataset, and the digests that prove it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from hvdyolo.data.format import MANIFEST_NAME, SCHEMA, VERSION
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, MismatchError, UsageError
from hvdyolo.utils.files import write_json


@dataclass(frozen=True)
class SplitInfo:
    """One split's shards, in order, and its number of samples."""

    shards: tuple[ShardRecord, ...]
    samples: int


@dataclass(frozen=True)
class Manifest:
    """A packed dataset.

    Attributes:
        dataset_id: derived from the content: equal content has an equal one.
        names: class names; a label's class is an index into them.
        settings: how it was packed.
    """

    dataset_id: str
    names: tuple[str, ...]
    splits: Mapping[str, SplitInfo]
    settings: Mapping[str, Any]


def build_manifest(
    names: tuple[str, ...], shards: Mapping[str, list[ShardRecord]], settings: Mapping[str, Any]
) -> Manifest:
    """The manifest of freshly written shards."""
    content = json.dumps(
        [list(names), {split: [record.digest for record in records] for split, records in shards.items()}]
    )
    return Manifest(
        # The digests cover the index, and that the checksums of all images.
        dataset_id=xxhash.xxh3_128_hexdigest(content.encode()),
        names=names,
        splits={
            split: SplitInfo(tuple(records), sum(record.samples for record in records))
            for split, records in shards.items()
        },
        settings=dict(settings),
    )


def write_manifest(manifest: Manifest, root: Path) -> None:
    """Write it; a packed dataset exists from then on."""
    content = {"schema": SCHEMA, "version": VERSION, **asdict(manifest)}
    write_json(root / MANIFEST_NAME, {**content, "digest": _digest(content)})


def read_manifest(root: Path) -> Manifest:
    """The manifest of the dataset in ``root``, checked against its own digest.

    Raises:
        UsageError: there is none.
        MismatchError: it is of another version of the format.
        DataError: it is damaged.
    """
    path = root / MANIFEST_NAME
    if not root.is_dir():
        raise UsageError(f"There is no directory {root}; pack a dataset there with hvdyolo pack.")
    if not path.is_file():
        raise UsageError(f"{root} is not a packed dataset: it has no {MANIFEST_NAME}; see hvdyolo pack.")
    try:
        content = json.loads(path.read_text())
        schema, version = content["schema"], content["version"]
        if schema == SCHEMA and version != VERSION:
            raise MismatchError(
                f"{root} is packed in format version {version}, this program reads {VERSION}; pack it again."
            )
        digest = content.pop("digest")
        if schema != SCHEMA or digest != _digest(content):
            raise ValueError("digest")
        return Manifest(
            dataset_id=content["dataset_id"],
            names=tuple(content["names"]),
            splits={
                name: SplitInfo(tuple(ShardRecord(**record) for record in split["shards"]), split["samples"])
                for name, split in content["splits"].items()
            },
            settings=content["settings"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is damaged; restore it or pack the dataset again.") from None


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())
