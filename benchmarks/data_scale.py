"""Starting on ten million samples: what one rank and one loader worker take for the index alone.

Simulated: one shard of 256 MiB with seven boxes a sample is written, its images being zeros, and hard links
give it all the names that ten million samples need. So every shard comes from the cache, and the figures are
those of processor and memory; a cold file system adds its own. Needs 10 GB of memory.

    python benchmarks/data_scale.py --work /tmp/scale
"""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

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

WORKER = """
import pickle, sys
import hvdyolo.data.reader  # as the server has, from which workers are forked
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
before = private()
split = pickle.load(sys.stdin.buffer)
assert split.size(len(split) - 1)
print(private() - before)
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
    started, used = time.perf_counter(), time.process_time()
    split = PackedSplit(options.work, "train")
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    print(f"{len(split):,} samples; {processor:.1f} s of processor time to open them", flush=True)
    worker = subprocess.run(
        [sys.executable, "-c", WORKER], input=pickle.dumps(split), stdout=subprocess.PIPE, check=True
    )
    shutil.rmtree(options.work)
    return report(
        [
            Claim("a rank opens the split", seconds, "<=", 5, "s"),
            Claim("a loader worker grows by", int(worker.stdout) / 1024, "<=", 50, "MiB"),
        ]
    )


def simulate(root: Path, shards: int) -> None:
    """A dataset of ``shards`` equal shards."""
    template = write_template(root)
    content = ContentDigest(NAMES)
    content.add("train", read_shard(root, template, len(NAMES)))
    records = [replace(template, file=shard_name("train", number, shards)) for number in range(shards)]
    for record in records:
        os.link(root / template.file, root / record.file)
    write_manifest(build_manifest(content.dataset_id(), NAMES, {"train": records}, {}), root)


def write_template(root: Path) -> ShardRecord:
    """One shard; its images are never read."""
    labels = np.full((BOXES, 5), (0, 0.5, 0.5, 0.25, 0.25), dtype=np.float32)
    flags = np.zeros(BOXES, dtype=np.uint8)
    encoded = bytes(SAMPLE_BYTES)
    with ShardWriter(root / "template.h5", ShardDescription("train", 0, NAMES, {}), root) as writer:
        for number in range(SHARD_SAMPLES):
            name = f"{number:012d}.jpg"
            writer.add(Sample(encoded, "JPEG", 640, 480, 640, 480, labels, flags, name, number))
    assert writer.record is not None
    return writer.record


if __name__ == "__main__":
    sys.exit(main())
