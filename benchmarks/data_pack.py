"""Packing against the disk, and against the decoder that images go through in training.

Draws photograph-like JPEGs of 640 x 480 with seven boxes each, and measures, round by round, one after the
other, so that a slower minute slows all of them down:

- the shard writer, checksums included, fed from memory, against plain writes of 8 MiB and an fsync;
- ``hvdyolo pack`` with its check of all images and labels, by one process, by two, and by two ranks, against
  as many bare decoders side by side, each a process that decodes the same bytes from its memory;
- two ranks against one, and, for comparison, two bare decoders against one.

Packing has as many cores as the decoders: a rank alone is bound to one, as ``mpirun -np 1`` binds it, or the
thread that writes would take part of a second. Two ranks are compared with that, a core each, and with one
process that has both cores, as users start it. Listing the source and starting processes are part of packing.

And once, what a packed dataset takes on disk beyond the bytes of its JPEGs. Figures are medians over the
rounds of the ratio within a round. About 5 minutes on two quiet cores; needs 4 GB on a local disk.

    python benchmarks/data_pack.py --work /tmp/pack
"""

import argparse
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from claims import Claim, report
from PIL import Image

from hvdyolo.data.images import decode
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.writer import Sample, ShardDescription, ShardWriter

BIN = Path(sys.executable).parent
WIDTH, HEIGHT, QUALITY = 640, 480, 90
DISTINCT = 64
BOXES = 7
BLOCK_BYTES = 8 << 20
SHARD_BYTES = 256 << 20


def main() -> int:
    """Returns 1 if a claim falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for drawn and packed data; emptied")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    encoded = [draw(seed) for seed in range(DISTINCT)]
    source = write_source(options.work / "source", encoded, options.images)
    print(
        f"{options.images} images of {statistics.mean(map(len, encoded)) / 1e3:.0f} kB, "
        f"{options.rounds} rounds, {len(os.sched_getaffinity(0))} cores",
        flush=True,
    )
    claims = [
        writing(options.work, encoded, options.rounds),
        *packing(source, options.work, encoded, options.images, options.rounds),
    ]
    shutil.rmtree(options.work)
    return report(claims)


def draw(seed: int) -> bytes:
    """A JPEG of about 110 KB: noise of several scales, as photographs have."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for scale, strength in ((64, 60), (16, 30), (4, 16), (1, 7)):
        noise = generator.normal(0, strength, (HEIGHT // scale + 1, WIDTH // scale + 1, 3))
        pixels += noise.repeat(scale, 0).repeat(scale, 1)[:HEIGHT, :WIDTH]
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def write_source(root: Path, encoded: list[bytes], count: int) -> Path:
    """A YOLO folder of ``count`` images, hard links to the distinct ones: all are in the cache."""
    for folder in ("images/train", "labels/train", "distinct"):
        (root / folder).mkdir(parents=True)
    for number, content in enumerate(encoded):
        (root / f"distinct/{number}.jpg").write_bytes(content)
        rows = (f"{row % 80} 0.{row + 2}5 0.5 0.1234{row} 0.25\n" for row in range(BOXES))
        (root / f"distinct/{number}.txt").write_text("".join(rows))
    for number in range(count):
        for folder, suffix in (("images", "jpg"), ("labels", "txt")):
            original = root / f"distinct/{number % len(encoded)}.{suffix}"
            os.link(original, root / f"{folder}/train/{number:012d}.{suffix}")
    names = ", ".join(f"class{number}" for number in range(80))
    (root / "data.yaml").write_text(f"train: images/train\nnames: [{names}]\n")
    return root


def writing(work: Path, encoded: list[bytes], rounds: int) -> Claim:
    """The shard writer against plain writes of as many bytes."""
    samples = [sample(encoded[number % DISTINCT], number) for number in range(SHARD_BYTES // len(encoded[0]))]
    joined = memoryview(b"".join(sample.encoded for sample in samples))
    ratios = []
    for _ in range(max(rounds, 5) + 2):
        plain = seconds(lambda: write_plainly(work / "plain", joined))
        shard = seconds(lambda: write_shard(work / "shard.h5", samples))
        ratios.append(plain / shard)
        for path in (work / "plain", work / "shard.h5"):
            path.unlink()
    print(f"writer: {len(joined) / shard / 1e6:.0f} MB/s, plain writes {len(joined) / plain / 1e6:.0f} MB/s")
    return Claim("shard writer / plain 8 MiB writes and fsync", statistics.median(ratios), ">=", 0.8)


def sample(encoded: bytes, number: int) -> Sample:
    """With labels and all, as packing hands it to the writer."""
    labels = np.full((BOXES, 5), 0.25, dtype=np.float32)
    return Sample(
        encoded, "JPEG", WIDTH, HEIGHT, WIDTH, HEIGHT,
        labels, np.zeros(BOXES, np.uint8), f"{number:012d}.jpg", number,
    )  # fmt: skip


def write_plainly(path: Path, content: memoryview) -> None:
    """In blocks, and synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for first in range(0, len(content), BLOCK_BYTES):
        os.pwrite(descriptor, content[first : first + BLOCK_BYTES], first)
    os.fsync(descriptor)
    os.close(descriptor)


def write_shard(path: Path, samples: list[Sample]) -> None:
    """One shard, checksums and digest included."""
    with ShardWriter(path, ShardDescription("train", 0, ("thing",), {}), path.parent) as writer:
        for each in samples:
            writer.add(each)


def packing(source: Path, work: Path, encoded: list[bytes], images: int, rounds: int) -> Iterator[Claim]:
    """The command against decoders; one rank against two."""
    ratios: dict[str, list[float]] = {
        "one": [],
        "two": [],
        "ranks": [],
        "scaling": [],
        "decoders": [],
        "free": [],
    }
    with ProcessPoolExecutor(2, get_context("fork"), hold, (encoded,)) as decoders:
        for number in range(rounds):
            bare = decoding(decoders, 1, images // 8)
            one = images / pack(source, work / "packed", 1, ranks=1)
            if number == 0:
                sizes = on_disk(work / "packed")
            free = images / pack(source, work / "packed", 1)
            both = decoding(decoders, 2, images // 8)
            two = images / pack(source, work / "packed", 2)
            ranks = images / pack(source, work / "packed", 1, ranks=2)
            both = (both + decoding(decoders, 2, images // 8)) / 2
            print(
                f"images/s: decoder {bare:.0f}, two {both:.0f}; packing by one process {one:.0f}, "
                f"not bound to a core {free:.0f}, by two {two:.0f}, by two ranks {ranks:.0f}",
                flush=True,
            )
            ratios["one"].append(one / bare)
            ratios["two"].append(two / both)
            ratios["ranks"].append(ranks / both)
            ratios["scaling"].append(ranks / one)
            ratios["decoders"].append(both / bare)
            ratios["free"].append(ranks / free)
    middle = {name: statistics.median(values) for name, values in ratios.items()}
    print(f"two decoders side by side / one: {middle['decoders']:.3f}")
    yield Claim("packing, one rank on one core / decoder", middle["one"], ">=", 0.8)
    yield Claim("packing, one rank, two processes / two decoders side by side", middle["two"], ">=", 0.8)
    yield Claim("packing, mpirun -np 2, a core each / two decoders side by side", middle["ranks"], ">=", 0.8)
    yield Claim("packing, mpirun -np 2 / mpirun -np 1, a core each", middle["scaling"], ">=", 1.7)
    yield Claim(
        "packing, mpirun -np 2 / one process, which writes on a second core", middle["free"], ">=", 1.7
    )
    yield Claim("disk space beyond the JPEGs / JPEGs", sizes.allocated / sizes.images - 1, "<=", 0.002)
    print(f"length of all files beyond the JPEGs, holes included: {sizes.length / sizes.images - 1:.4f}")


_held: list[bytes] = []


def hold(encoded: list[bytes]) -> None:
    """In each decoder's own memory."""
    _held.extend(bytes(bytearray(each)) for each in encoded)


def decoding(decoders: ProcessPoolExecutor, count: int, images: int) -> float:
    """Images a second of so many bare decoders at once, each with so many images."""
    spans = [decoder.result() for decoder in [decoders.submit(_decode, images) for _ in range(count)]]
    return count * images / (max(end for _, end in spans) - min(start for start, _ in spans))


def _decode(images: int) -> tuple[float, float]:
    """When it began and ended."""
    started = time.monotonic()
    for number in range(images):
        decode(_held[number % len(_held)], WIDTH * HEIGHT)
    return started, time.monotonic()


def pack(source: Path, out: Path, workers: int, ranks: int | None = None) -> float:
    """Seconds as the command itself tells them: without the start of Python and of MPI.

    Args:
        ranks: under ``mpirun``, each bound to a core; ``None``: without, on all cores.
    """
    shutil.rmtree(out, ignore_errors=True)
    words = [
        BIN / "hvdyolo",
        "pack",
        "--source",
        "yolo",
        "--root",
        source,
        "--out",
        out,
        "--workers",
        workers,
    ]
    if ranks is not None:
        words = [BIN / "mpirun", "-np", ranks, "--bind-to", "core", *words]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    ended = subprocess.run(
        list(map(str, words)), check=True, env=os.environ | root, stdout=subprocess.PIPE, text=True
    )
    told = re.search(r"packed into .* in ([0-9.]+) s", ended.stdout)
    assert told is not None
    return float(told[1])


@dataclass(frozen=True)
class Sizes:
    """Of a packed dataset, bytes: its images, the disk's blocks it takes, the lengths of its files."""

    images: int
    allocated: int
    length: int


def on_disk(root: Path) -> Sizes:
    """Everything in the folder, manifest and label report included."""
    shards = [record for info in read_manifest(root).splits.values() for record in info.shards]
    files = [path.stat() for path in root.iterdir()]
    return Sizes(
        images=sum(record.data_bytes for record in shards),
        allocated=sum(status.st_blocks * 512 for status in files),
        length=sum(status.st_size for status in files),
    )


def seconds(action: Callable[[], None]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
