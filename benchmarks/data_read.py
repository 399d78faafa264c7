"""Reading samples against ``os.pread`` of the same bytes, which is all that has to be done.

    python benchmarks/data_read.py

On one core, from a warm cache, in random order. The bare read is ``os.pread`` in a loop over descriptors,
lengths and offsets that are known beforehand. All ways of reading take turns, each at a run of samples of its
own, so that none finds in the processor's cache what another has read; a figure is the ratio of medians over
all turns. The bars are for images of about 110 kB, as COCO has them; those of 21 kB (BCCD) are told beside.
"""

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from claims import Claim, report

from hvdyolo.data.format import shard_name
from hvdyolo.data.manifest import build_manifest, read_manifest, write_manifest
from hvdyolo.data.read_back import read_back
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter

Way = Callable[[Sequence[int]], object]
"""Reads samples, given by their numbers."""

SHARDS = 8
RUN, TURNS = 32, 400
"""Samples a turn, as a batch has them, and turns of each way."""
NAMES = ("thing",)


def main() -> int:
    """Returns 1 if a claim falls short."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    with tempfile.TemporaryDirectory() as work:
        little = write_dataset(Path(work) / "little", SHARDS, 1200, 21_000)
        print(line("21 kB", measure(little)), flush=True)
        seconds = measure(write_dataset(Path(work) / "large", SHARDS, 240, 110_000))
        print(line("110 kB", seconds), flush=True)
        at_once = most_open(write_dataset(Path(work) / "many", 100, 3, 200))
        opened = count_opened(little)
    bare, unchecked = seconds["pread"], seconds["read, unchecked"]
    return report(
        [
            Claim("read without checksum / pread", unchecked / bare, "<=", 1.4),
            Claim("read with checksum / pread", seconds["read"] / bare, "<=", 2),
            Claim("batch without checksum / pread", seconds["batch, unchecked"] / bare, "<=", 1.25),
            Claim("h5py slice / read without checksum", seconds["h5py"] / unchecked, ">=", 1.5),
            Claim("files opened for 19,200 reads from 8 shards", opened, "<=", SHARDS),
            Claim("files open at once, of 100 shards", at_once, "<=", 64),
        ]
    )


def write_dataset(root: Path, shards: int, each: int, size: int) -> Path:
    """Samples of half to one and a half times ``size``, random bytes: nothing decodes them."""
    root.mkdir()
    random = np.random.default_rng(0)
    boxes = np.full((3, 5), (0, 0.5, 0.5, 0.25, 0.25), dtype=np.float32)
    records: list[ShardRecord] = []
    for number in range(shards):
        description = ShardDescription("train", number, NAMES, {})
        with ShardWriter(root / shard_name("train", number, shards), description, root) as writer:
            for place in range(each):
                encoded = random.bytes(int(random.integers(size // 2, size + size // 2)))
                name = f"{number * each + place:012d}.jpg"
                flags = np.zeros(len(boxes), dtype=np.uint8)
                writer.add(Sample(encoded, "JPEG", 640, 480, 640, 480, boxes, flags, name, place))
        assert writer.record is not None
        records.append(writer.record)
    dataset_id = read_back(root, NAMES, {"train": records})
    write_manifest(build_manifest(dataset_id, NAMES, {"train": records}, {}), root)
    return root


def measure(root: Path) -> dict[str, float]:
    """Seconds a sample of each way of reading."""
    with ExitStack() as files:
        ways = dict(ways_of_reading(root, files))
        samples = len(PackedSplit(root, "train"))
        for way in ways.values():
            way(range(samples))
        random = np.random.default_rng(1)
        seconds = {name: np.empty(TURNS) for name in ways}
        names = list(ways)
        for turn in range(TURNS):
            runs = random.choice(samples, (len(ways), RUN), replace=False).tolist()
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                seconds[name][turn] = timed(ways[name], runs[place]) / RUN
    return {name: float(np.median(times)) for name, times in seconds.items()}


def ways_of_reading(root: Path, files: ExitStack) -> Iterator[tuple[str, Way]]:
    """The bare one first."""
    places = find_places(root, files)
    yield "pread", lambda samples: drop(os.pread(*places.bare[sample]) for sample in samples)
    yield "h5py", lambda samples: drop(data[place] for data, place in (places.data[n] for n in samples))
    for name, verify in (("", True), (", unchecked", False)):
        split = PackedSplit(root, "train", verify=verify)
        files.callback(split.close)
        yield f"read{name}", lambda samples, split=split: drop(map(split.read, samples))
        yield f"batch{name}", lambda samples, split=split: drop(split.read_many(samples))


def drop(images: Iterable[object]) -> None:
    """Take images one by one, and keep none: whoever decodes them does so too."""
    deque(images, maxlen=0)


@dataclass(frozen=True)
class Places:
    """Where samples are: for ``os.pread``, and for h5py."""

    bare: list[tuple[int, int, int]]
    data: list[tuple[h5py.Dataset, slice]]


def find_places(root: Path, files: ExitStack) -> Places:
    """Of all samples; the files are opened until ``files`` end."""
    places = Places([], [])
    for record in read_manifest(root).splits["train"].shards:
        file = files.enter_context(h5py.File(root / record.file, "r"))
        descriptor = os.open(root / record.file, os.O_RDONLY)
        files.callback(os.close, descriptor)
        index = file["index"][()]
        for offset, length in zip(index["offset"].tolist(), index["length"].tolist(), strict=True):
            places.bare.append((descriptor, length, record.data_offset + offset))
            places.data.append((file["data"], slice(offset, offset + length)))
    return places


def timed(way: Way, samples: Sequence[int]) -> float:
    """Seconds that reading ``samples`` takes."""
    started = time.perf_counter()
    way(samples)
    return time.perf_counter() - started


def line(title: str, seconds: dict[str, float]) -> str:
    """Microseconds of each way, and its ratio to the bare one."""
    bare = seconds["pread"]
    told = [f"{name} {each * 1e6:.1f} us ({each / bare:.2f})" for name, each in seconds.items()]
    return f"{title}: {', '.join(told)}"


def count_opened(root: Path) -> int:
    """How often files are opened while all samples are read twice."""
    opened = 0

    def count(event: str, _: object) -> None:
        nonlocal opened
        opened += event == "open"

    split = PackedSplit(root, "train")
    sys.addaudithook(count)  # for good, but nothing opens files any more where it would cost time
    for sample in [*range(len(split)), *range(len(split))]:
        split.read(sample)
    counted = opened
    split.close()
    return counted


def most_open(root: Path) -> int:
    """Files that are open after a sample of every shard has been read."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    split = PackedSplit(root, "train")
    for sample in range(len(split)):
        split.read(sample)
    counted = len(list(Path("/proc/self/fd").iterdir())) - before
    split.close()
    return counted


if __name__ == "__main__":
    sys.exit(main())
