"""What checksums cost: their share of the time that loading a sample takes, reading and decoding.

    python benchmarks/data_verify.py

On one core, from a warm cache. A sample is read with and without its checksum, in changing order, and decoded
once a round; the share is the difference of the two reads over checked read plus decoding. So the noise of
decoding, which is larger than the whole checksum, is not in the difference.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from claims import Claim, report
from numpy.typing import NDArray

from hvdyolo.data.images import MOST_PIXELS, decode, encode_jpeg
from hvdyolo.data.pack import main as pack
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.synth import draw_picture

ROOT = Path(__file__).resolve().parent.parent
BAR = 1.0  # per cent
"""Largest share of a sample's loading."""
ROUNDS = 12
SAMPLES = 128


@dataclass(frozen=True)
class Costs:
    """(samples,) each, seconds: medians over rounds, which a busy machine hardly moves."""

    checked: NDArray[np.float64]
    unchecked: NDArray[np.float64]
    decoding: NDArray[np.float64]
    size: NDArray[np.int64]
    """Bytes."""

    @property
    def checksum(self) -> NDArray[np.float64]:
        """Seconds that checking adds to reading."""
        return self.checked - self.unchecked

    @property
    def loading(self) -> NDArray[np.float64]:
        """Seconds of reading, checking and decoding."""
        return self.checked + self.decoding

    @property
    def share(self) -> float:
        """Of checksums in loading all samples."""
        return float(self.checksum.sum() / self.loading.sum())


def main() -> int:
    """Returns 1 if a claim falls short."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    claims = []
    with tempfile.TemporaryDirectory() as work:
        for title, data in datasets(Path(work)):
            costs = measure(data)
            print(line(title, costs), flush=True)
            claims.append(Claim(f"checksums' share of loading, {title}", 100 * costs.share, "<=", BAR, "%"))
    return report(claims)


def datasets(work: Path) -> Iterator[tuple[str, Path]]:
    """Packed datasets with a split ``train``, and what they are."""
    bccd = Path(os.environ.get("HVDYOLO_TEST_DATA", ROOT.parent / "shared" / "data")) / "bccd"
    if (bccd / "JPEGImages").is_dir():
        yield "BCCD photographs", packed("voc", bccd, work / "bccd")
    else:
        print(f"no BCCD photographs in {bccd}; HVDYOLO_TEST_DATA names the folder that holds bccd")
    yield "drawn 640 x 480", packed("yolo", draw(work / "source"), work / "drawn")


def draw(source: Path) -> Path:
    """Pictures of 640 x 480, four drawn ones each, in YOLO's layout and without labels."""
    folder = source / "images" / "train"
    folder.mkdir(parents=True)
    for number in range(SAMPLES):
        a, b, c, d = (draw_picture(np.random.default_rng([number, part]), 8)[0] for part in range(4))
        picture = np.vstack([np.hstack([a, b]), np.hstack([c, d])])[:480]
        (folder / f"{number:03d}.jpg").write_bytes(encode_jpeg(picture, 92))
    (source / "data.yaml").write_text("train: images/train\nnames: [a, b, c, d, e, f, g, h]\n")
    return source


def packed(kind: str, source: Path, out: Path) -> Path:
    """The source, packed without a word."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        pack(["--source", kind, "--root", str(source), "--out", str(out)])
    return out


def measure(data: Path) -> Costs:
    """Costs of the same samples in all rounds, all variants of a sample one after the other."""
    checked = PackedSplit(data, "train")
    unchecked = PackedSplit(data, "train", verify=False)
    samples = np.random.default_rng(0).permutation(len(checked))[:SAMPLES].tolist()
    seconds = np.empty((ROUNDS, len(samples), 3))
    for number in range(ROUNDS):
        for place, sample in enumerate(samples):
            seconds[number, place] = time_sample(checked, unchecked, sample, (number + place) % 2 == 0)
    size = np.array([len(checked.read(sample)) for sample in samples])
    return Costs(*np.median(seconds, axis=0).T, size=size)


def time_sample(
    checked: PackedSplit, unchecked: PackedSplit, sample: int, checked_first: bool
) -> tuple[float, float, float]:
    """Seconds of a read with checksum, one without, and of decoding."""
    encoded = unchecked.read(sample)  # whichever came first would bring the bytes into the processor's cache
    if checked_first:
        with_checksum = timed(lambda: checked.read(sample))
        without = timed(lambda: unchecked.read(sample))
    else:
        without = timed(lambda: unchecked.read(sample))
        with_checksum = timed(lambda: checked.read(sample))
    return with_checksum, without, timed(lambda: decode(encoded, MOST_PIXELS))


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def line(title: str, costs: Costs) -> str:
    """The parts of loading; the spread is from the 5th to the 95th of 100 samples."""
    low, high = np.quantile(costs.checksum / costs.loading, [0.05, 0.95])
    return (
        f"{title}: checksums take {low:.2%} … {high:.2%} of a sample's loading "
        f"[{costs.size.mean() / 1000:.0f} KB: read {costs.unchecked.mean() * 1e6:.1f} us, "
        f"checksum {costs.checksum.mean() * 1e6:.1f} us, decoding {costs.decoding.mean() * 1e6:.0f} us]"
    )


if __name__ == "__main__":
    sys.exit(main())
