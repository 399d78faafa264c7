"""``data_tools/reshard.py``: packed data in shards of another size.

Images are copied as they are, each compared with its checksum on the way. Samples keep their order, and the
dataset its identity. In memory are the images of one new shard and the index of one old one. As in packing,
shards are written whole, the manifest comes last, and the same command goes on where it was.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from xxhash import xxh3_128_hexdigest

from hvdyolo.data.division import divide
from hvdyolo.data.format import CODECS, shard_name
from hvdyolo.data.identity import ContentDigest
from hvdyolo.data.lint import REPORT_DATA_NAME, REPORT_NAME
from hvdyolo.data.manifest import Manifest, SplitInfo, build_manifest, read_manifest, write_manifest
from hvdyolo.data.pack_output import WORK, claim_output
from hvdyolo.data.pack_plan import PLAN_NAME
from hvdyolo.data.polygon_file import copy_polygons
from hvdyolo.data.read_back import read_back
from hvdyolo.data.sequential import read_images
from hvdyolo.data.shard import Shard, read_shard
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter
from hvdyolo.utils.errors import DataError, InternalError, MismatchError, UsageError
from hvdyolo.utils.files import write_atomically, write_json

_BYTES_A_MIB = 1 << 20
_PROGRESS_SECONDS = 10.0
_FORMATS = {number: name for name, number in CODECS.items()}


def main(arguments: Sequence[str]) -> int:
    """The command line of ``data_tools/reshard.py``."""
    options = _parse(arguments)
    started = time.monotonic()
    manifest = reshard(options.packed, options.out, options.shard_mb * _BYTES_A_MIB)
    shards = sum(len(info.shards) for info in manifest.splits.values())
    samples = sum(info.samples for info in manifest.splits.values())
    _tell(
        f"{samples} samples in {shards} shard{'s' if shards > 1 else ''} in {options.out}, "
        f"{time.monotonic() - started:.1f} s, dataset {manifest.dataset_id}"
    )
    return 0


def reshard(root: Path, out: Path, shard_bytes: int) -> Manifest:
    """Copy the dataset in ``root`` into ``out``, in shards of about ``shard_bytes`` of images.

    Raises:
        UsageError: there is no dataset in ``root``.
        DataError: it is damaged; names shard and sample.
        MismatchError: ``out`` holds something else, or ``root`` is of another version of the format.
        StorageError: the file system fails.
    """
    source = read_manifest(root)
    settings = {**source.settings, "shard_bytes": shard_bytes}
    claim_output(out)
    _begin(out / WORK, source, shard_bytes)
    content = ContentDigest(source.names)
    plan = [
        shard
        for split, info in source.splits.items()
        for shard in _plan_split(_OldShards(root, info, source.names), split, shard_bytes, content)
    ]
    records = _copy(plan, out, source, settings)
    polygons = {split: info.polygons for split, info in source.splits.items() if info.polygons is not None}
    for kept in polygons.values():
        copy_polygons(root, kept, out, out / WORK)
    found = read_back(out, source.names, records, polygons)
    if found != content.dataset_id({split: kept.digest for split, kept in polygons.items()}):
        raise InternalError(f"{out} differs from what {root} held at first; remove it and start again.")
    for name in (REPORT_NAME, REPORT_DATA_NAME):
        if (root / name).is_file():
            write_atomically(out / name, (root / name).read_bytes())
    manifest = build_manifest(source.dataset_id, source.names, records, settings, polygons)
    write_manifest(manifest, out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return manifest


class _OldShards:
    """The samples of a split in their order, over the borders of its shards."""

    def __init__(self, root: Path, info: SplitInfo, names: tuple[str, ...]) -> None:
        self._root = root
        self._records = info.shards
        self._classes = len(names)
        self._open: dict[int, Shard] = {}

    def __iter__(self) -> Iterator[Shard]:
        return (self._shard(number) for number in range(len(self._records)))

    def samples(self, places: range) -> Iterator[Sample]:
        """Those at ``places`` of the split, without a gap.

        Raises:
            DataError: a shard or a sample is damaged.
            StorageError: the file system fails.
        """
        first = 0
        for number, record in enumerate(self._records):
            rows = range(max(places.start - first, 0), min(places.stop - first, record.samples))
            if rows:
                shard = self._shard(number)
                for row, encoded in zip(rows, read_images(shard, rows), strict=True):
                    yield _sample(shard, row, encoded)
            first += record.samples

    def _shard(self, number: int) -> Shard:
        """One at a time is kept: neighbouring new shards often begin and end in the same old one."""
        if number not in self._open:
            self._open = {number: read_shard(self._root, self._records[number], self._classes)}
        return self._open[number]


def _sample(shard: Shard, row: int, encoded: bytes) -> Sample:
    labels = slice(shard.label_ptr.item(row), shard.label_ptr.item(row + 1))
    height, width = shard.sizes[row].tolist()
    source_height, source_width = shard.source_sizes[row].tolist()
    return Sample(
        encoded=encoded,
        format=_FORMATS.get(shard.codecs.item(row), ""),
        width=width,
        height=height,
        source_width=source_width,
        source_height=source_height,
        labels=shard.labels[labels],
        flags=shard.label_flags[labels],
        name=shard.name(row),
        sample_id=shard.sample_ids.item(row),
    )


@dataclass(frozen=True)
class _NewShard:
    """A shard to write: the samples at ``places`` of a split."""

    split: str
    number: int
    file: str
    old: _OldShards
    places: range


def _plan_split(old: _OldShards, split: str, shard_bytes: int, content: ContentDigest) -> Iterator[_NewShard]:
    """Divide a split by the rule of packing; its content is added to ``content``."""
    samples, size = 0, 0
    for shard in old:
        content.add(split, shard)
        samples += len(shard.lengths)
        size += int(shard.lengths.sum())
    runs = divide(samples, size, shard_bytes) if samples else []
    for number, places in enumerate(runs):
        yield _NewShard(split, number, shard_name(split, number, len(runs)), old, places)


def _begin(work: Path, source: Manifest, shard_bytes: int) -> None:
    """Note in ``work`` what is being done, or see that it is what was begun.

    Raises:
        MismatchError: it is not.
    """
    what = json.dumps([asdict(source), shard_bytes], sort_keys=True)
    plan = {"fingerprint": f"reshard {xxh3_128_hexdigest(what.encode())}"}
    path = work / PLAN_NAME
    try:
        begun = json.loads(path.read_bytes())["fingerprint"]
    except FileNotFoundError:
        write_json(path, plan)
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {work.parent} and start again.") from None
    if begun != plan["fingerprint"]:
        raise MismatchError(
            f"{work.parent} holds unfinished work on other data or for another --shard-mb; give another "
            "--out or remove it."
        )


def _copy(
    plan: Sequence[_NewShard], out: Path, source: Manifest, settings: Mapping[str, Any]
) -> dict[str, list[ShardRecord]]:
    """Write the shards that are not there yet; what the manifest needs to know of all, by split."""
    records: dict[str, list[ShardRecord]] = {split: [] for split in source.splits}
    told = time.monotonic()
    for done, shard in enumerate(plan):
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            _tell(f"  {done} of {len(plan)} shards")
        path = out / WORK / f"{shard.file}.json"
        if not path.exists():
            description = ShardDescription(shard.split, shard.number, source.names, settings)
            with ShardWriter(out / shard.file, description, out / WORK) as writer:
                for sample in shard.old.samples(shard.places):
                    writer.add(sample)
            assert writer.record is not None
            write_json(path, asdict(writer.record))
        records[shard.split].append(ShardRecord.from_json(json.loads(path.read_bytes())))
    return records


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("reshard", description="Change the size of packed shards.", allow_abbrev=False)
    parser.add_argument("packed", type=Path, help="a packed dataset; it is only read")
    parser.add_argument("--out", required=True, type=Path, help="the new packed dataset")
    parser.add_argument("--shard-mb", type=int, default=256, help="MiB of images a shard (default: 256)")
    options = parser.parse_args(arguments)
    if options.shard_mb < 1:
        raise UsageError(f"--shard-mb must be at least 1, not {options.shard_mb}.")
    return options
