"""``python damage_study.py ROOT``: damages a packed dataset in 1,000 ways and more, in turn, and reads it.

Prints a JSON object a damage. A program of its own, because damaged files can crash or hang the HDF5 library.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hvdyolo.data.format import DATASETS, MANIFEST_NAME
from hvdyolo.data.manifest import Manifest, read_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.verify import find_problems
from hvdyolo.utils.errors import DataError, MismatchError

FLIPS = {
    "structure": 250,
    "padding": 50,
    "data": 200,
    "index": 100,
    "labels": 100,
    "label_flags": 25,
    "label_ptr": 50,
    "names": 25,
    "name_ptr": 50,
    MANIFEST_NAME: 175,
}
"""Flipped bits by where they are: ``structure`` is HDF5's own, ``padding`` the empty space before /data."""
SHARD_CUTS, MANIFEST_CUTS = 50, 25


@dataclass(frozen=True)
class Damage:
    """One flipped bit, or a file that is cut.

    Attributes:
        place: byte in the file; its new length if it is cut.
        bit: ``None`` if it is cut.
    """

    region: str
    file: str
    place: int
    bit: int | None


@dataclass(frozen=True)
class Outcome:
    """What came of using a damaged dataset.

    Attributes:
        refused: it could not be opened.
        unreadable: samples that could not be read, of those of an opened one.
        wrong: what it gave that was not packed.
        found: whether ``verify`` finds it.
    """

    refused: bool
    unreadable: list[int]
    wrong: list[str]
    found: bool


def main(root: Path) -> None:
    """Try everything."""
    manifest = read_manifest(root)
    samples = list(map(_sample(PackedSplit(root, "train")), range(manifest.splits["train"].samples)))
    opened: list[str] = []
    original = h5py.File

    def opening(path: Path, *arguments: Any, **options: Any) -> h5py.File:
        opened.append(path.name)
        return original(path, *arguments, **options)

    damages = list(_damages(root, manifest))
    h5py.File = opening
    for damage in damages:
        opened.clear()
        with _inflicted(root / damage.file, damage):
            outcome = _use(root, manifest, samples)
        # "hdf5": the library was given the damaged file.
        told = asdict(damage) | asdict(outcome) | {"hdf5": damage.file in opened}
        print(json.dumps(told), flush=True)


def _damages(root: Path, manifest: Manifest) -> Iterator[Damage]:
    random = np.random.default_rng(0)
    shards = [record.file for record in manifest.splits["train"].shards]
    places = {file: _regions(root / file) for file in shards}
    places[MANIFEST_NAME] = {MANIFEST_NAME: np.arange((root / MANIFEST_NAME).stat().st_size)}
    for region, count in FLIPS.items():
        files = [file for file, regions in places.items() if region in regions]
        for number in range(count):
            file = files[number % len(files)]
            place, bit = random.choice(places[file][region]), random.integers(8)
            yield Damage(region, file, int(place), int(bit))
    for files, count in ((shards, SHARD_CUTS), ([MANIFEST_NAME], MANIFEST_CUTS)):
        for number in range(count):
            file = files[number % len(files)]
            yield Damage("cut", file, int(random.integers((root / file).stat().st_size)), None)


def _regions(shard: Path) -> dict[str, np.ndarray]:
    """Bytes of a shard by what they are."""
    regions = {}
    structure = np.ones(shard.stat().st_size, dtype=bool)
    with h5py.File(shard, "r") as file:
        for name in DATASETS:
            start = file[name].id.get_offset()
            regions[name] = np.arange(start, start + file[name].nbytes)
            structure[regions[name]] = False
    raw = np.frombuffer(shard.read_bytes(), dtype=np.uint8)
    data = regions["data"][0]
    used = np.flatnonzero(raw[:data])[-1] + 1
    structure[used:data] = False
    return regions | {"padding": np.arange(used, data), "structure": np.flatnonzero(structure)}


@contextmanager
def _inflicted(path: Path, damage: Damage) -> Iterator[None]:
    good = path.read_bytes()
    try:
        if damage.bit is None:
            os.truncate(path, damage.place)
        else:
            raw = bytearray(good)
            raw[damage.place] ^= 1 << damage.bit
            path.write_bytes(raw)
        yield
    finally:
        path.write_bytes(good)


def _use(root: Path, manifest: Manifest, samples: list[tuple[Any, ...]]) -> Outcome:
    """Read all there is; any error but the two that are meant ends the program."""
    wrong, unreadable = [], []
    found = _is_found(root)
    try:
        if read_manifest(root) != manifest:
            wrong.append("manifest")
        split = PackedSplit(root, "train")
    except (DataError, MismatchError):
        return Outcome(True, unreadable, wrong, found)
    get = _sample(split)
    for index, sample in enumerate(samples):
        try:
            if get(index) != sample:
                wrong.append(f"sample {index}")
        except DataError:
            unreadable.append(index)
    return Outcome(False, unreadable, wrong, found)


def _is_found(root: Path) -> bool:
    try:
        return any(find_problems(root))
    except (DataError, MismatchError):
        return True


def _sample(split: PackedSplit) -> Callable[[int], tuple[Any, ...]]:
    """Of a sample's number, all that is known about it."""

    def sample(index: int) -> tuple[Any, ...]:
        return (
            split.read(index),
            split.labels(index).tobytes(),
            split.flags(index).tobytes(),
            split.size(index),
            split.source_size(index),
            split.sample_id(index),
            split.name(index),
        )

    return sample


if __name__ == "__main__":
    main(Path(sys.argv[1]))
