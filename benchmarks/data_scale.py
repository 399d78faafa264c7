"""Starting on ten million samples: what the ranks of a node and their loader workers take for the index.

Simulated: one shard of 256 MiB with seven boxes a sample is written, its images being zeros, and as many
files as ten million samples need get what it holds besides images, and a hole for those. Then the ranks of a
node open the split: the first alone, which reads the shards and makes the copy that the node shares; a second
one, which finds it (the median of three each); then, with the copy removed, several at once. All files come
from the cache, so the figures are those of processor and memory; a cold file system adds its own to what the
first rank of a node takes. 4,096 ranks are 512 such nodes, which share nothing but the file system.

A worker is a process of its own that gets the split pickled and touches every page of the index. What it
grows by is its private memory and its page tables, while its rank has the same copy mapped. Needs 8 GB of
memory.

    python benchmarks/data_scale.py --work /tmp/scale
"""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, report

from hvdyolo.data.format import shard_name
from hvdyolo.data.identity import ContentDigest
from hvdyolo.data.manifest import build_manifest, write_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.shard import read_shard
from hvdyolo.data.writer import Sample, ShardDescription, ShardRecord, ShardWriter

SAMPLE_BYTES, BOXES = 110_000, 7
SHARD_SAMPLES = (256 << 20) // SAMPLE_BYTES
NAMES = ("thing",)
RANKS, TRIES = 8, 3
"""Of a node, and how often its first two are started alone."""

RANK = """
import json, sys, time
from pathlib import Path
from hvdyolo.data.reader import PackedSplit
root = Path(sys.argv[1])
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
started, used = time.perf_counter(), time.process_time()
split = PackedSplit(root, "train")
seconds, processor = time.perf_counter() - started, time.process_time() - used
reads = sum(name.endswith(".h5") for name in opened) / len(list(root.glob("*.h5")))
print(json.dumps({"seconds": seconds, "processor": processor, "reads": reads}))
"""

WORKER = """
import pickle, sys, time
import hvdyolo.data.reader  # as the server has, from which workers are forked
def grown():
    lines = [*open("/proc/self/smaps_rollup"), *open("/proc/self/status")]
    counted = ("Private_Clean", "Private_Dirty", "VmPTE")
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in counted)
before = grown()
split = pickle.load(sys.stdin.buffer)
assert len(split._index.data[::4096]) and split.size(len(split) - 1)
print(grown() - before)
"""


def main() -> int:
    """Returns 1 if a claim falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the simulated data; emptied")
    parser.add_argument("--samples", type=int, default=10_000_000)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    simulate(options.work, -(-options.samples // SHARD_SAMPLES))
    first, second = typical(options.work)
    split = PackedSplit(options.work, "train")
    assert len(split._index.data[::4096])  # or pages would be counted as the worker's own
    pickled = pickle.dumps(split)
    tell(options.work, split, pickled, first)
    growth = grow_worker(pickled)
    remove_copy(split)
    del split  # its memory is the next copy's
    node = start_ranks(options.work, RANKS)
    remove_copy(PackedSplit(options.work, "train"))
    shutil.rmtree(options.work)
    slowest = max(rank["seconds"] for rank in node)
    print(f"{RANKS} ranks at once share {os.cpu_count()} cores")
    return report(
        [
            Claim("the first rank of a node opens the split", first["seconds"], "<=", 5, "s"),
            Claim("any other rank opens the split", second["seconds"], "<=", 5, "s"),
            Claim(f"the slowest of {RANKS} ranks at once opens the split", slowest, "<=", 5, "s"),
            Claim(f"index reads of {RANKS} ranks at once", sum(rank["reads"] for rank in node), "<=", 1),
            Claim("a loader worker grows by", growth, "<=", 50, "MiB"),
        ]
    )


def typical(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the first rank of a node tells, and the next, in the median of some tries."""
    first, second = [], []
    for _ in range(TRIES):
        first += start_ranks(root, 1)
        second += start_ranks(root, 1)
        remove_copy(PackedSplit(root, "train"))
    return tuple(sorted(ranks, key=lambda rank: rank["seconds"])[TRIES // 2] for ranks in (first, second))


def start_ranks(root: Path, count: int) -> list[dict[str, Any]]:
    """Processes that open the split, all at the same time, and what each tells."""
    command = [sys.executable, "-c", RANK, str(root)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    told = [json.loads(rank.communicate()[0]) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    return told


def grow_worker(pickled: bytes) -> float:
    """MiB that a process grows by when it gets the split."""
    worker = subprocess.run([sys.executable, "-c", WORKER], input=pickled, stdout=subprocess.PIPE, check=True)
    return int(worker.stdout) / 1024


def remove_copy(split: PackedSplit) -> None:
    """Remove the copy that ``split`` has mapped, which a benchmark should not leave behind."""
    assert split._index.copy is not None
    split._index.copy.unlink()


def tell(root: Path, split: PackedSplit, pickled: bytes, first: dict[str, Any]) -> None:
    """The sizes, and the processor time of the first rank."""
    shards = len(list(root.glob("*.h5")))
    index = len(split._index.data) / 2**20
    print(
        f"{len(split):,} samples in {shards:,} shards, index of {index:,.0f} MiB; "
        f"the first rank takes {first['seconds']:.1f} s, of them {first['processor']:.1f} s on a core; "
        f"pickled for a worker: {len(pickled) / 2**20:.1f} MiB",
        flush=True,
    )


def simulate(root: Path, shards: int) -> None:
    """A dataset of ``shards`` equal shards."""
    template = write_template(root)
    shard = read_shard(root, template, len(NAMES))
    content = ContentDigest(NAMES)
    content.add("train", shard)
    records = [replace(template, file=shard_name("train", number, shards)) for number in range(shards)]
    raw = (root / template.file).read_bytes()
    images_end = template.data_offset + template.data_bytes
    for record in records:
        with open(root / record.file, "wb") as file:
            file.write(raw[: template.data_offset].rstrip(b"\0"))
            file.seek(images_end)
            file.write(raw[images_end:])
    (root / template.file).unlink()
    os.sync()  # or the first ranks share the disk with what was just written
    write_manifest(build_manifest(content.dataset_id(), NAMES, {"train": records}, {}), root)


def write_template(root: Path) -> ShardRecord:
    """One shard; its images are never read, and its names are not those of any other run's copy."""
    labels = np.full((BOXES, 5), (0, 0.5, 0.5, 0.25, 0.25), dtype=np.float32)
    flags = np.zeros(BOXES, dtype=np.uint8)
    encoded = bytes(SAMPLE_BYTES)
    with ShardWriter(root / "template.h5", ShardDescription("train", 0, NAMES, {}), root) as writer:
        for number in range(SHARD_SAMPLES):
            name = f"{os.getpid():06d}{number:06d}.jpg"
            writer.add(Sample(encoded, "JPEG", 640, 480, 640, 480, labels, flags, name, number))
    assert writer.record is not None
    return writer.record


if __name__ == "__main__":
    sys.exit(main())
