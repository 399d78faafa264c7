"""Images a second of training, YOLOv5n at 320 pixels, global batch 16, on two cores.

    python benchmarks/train_speed.py

One rank with two threads against the plain form (``plain_form.py``), two ranks with one thread against two
processes that know nothing of each other and against torch's DDP. All are whole loops with real loading:
``hvdyolo train`` itself, with the recipe ``yolov5n_bccd`` but without warm-up, so that an optimizer step is
four batches; two ranks are also measured with a reduction after each batch. The plain form does not
anti-alias when it resamples, so one rank is measured with ``augment.resampling bilinear`` too, which does not
either; and bf16, beside which loading counts for more, with ``augment.partners recent`` and
``augment.decoding coarse`` too. They take turns in rounds (``train_rounds.py``) and in several launches, as
two launches of one training can differ by a tenth; a figure is the median over rounds of the ratio within a
round, its spread the least and the largest.

The photographs are BCCD's, ten times over, from the folder that HVDYOLO_TEST_DATA names (by default
../shared/data), or drawn ones where it is missing.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bccd import BIN, ROOT, as_root, processor
from claims import Claim, report
from numpy.typing import NDArray
from train_rounds import Pace, Training, pace_words, take_turns

from hvdyolo.data.pack import main as pack
from hvdyolo.data.synth import write_dataset

HERE = Path(__file__).resolve().parent
IMAGES = 2_000  # so that no round meets the end of an epoch
BATCH, NOMINAL = 16, 64
# Speeds differ more from launch to launch than from round to round.
LAUNCHES, ROUNDS_A_LAUNCH = 3, 2
ROUNDS_WITHOUT_LOADING, ROUNDS_OF_EMULATION = 2, 1
PACE = Pace(warm=4, timed=4)
# Where the processor computes bf16 by emulation, a batch takes as long as ten.
PACE_OF_EMULATION = Pace(warm=1, timed=1)


@dataclass(frozen=True)
class Bench:
    """Where the benchmark's parts are.

    Attributes:
        data: the packed photographs.
        work: a folder for the trainings.
    """

    data: Path
    work: Path

    def hvdyolo(
        self,
        name: str,
        *words: object,
        pace: Pace = PACE,
        launcher: Sequence[str] = (),
        ranks: int = 1,
        alone: int = 1,
    ) -> Training:
        """``hvdyolo train`` by ``launcher`` on ``ranks``, or ``alone`` such processes side by side."""
        return Training(
            name,
            [
                [
                    *launcher,
                    *self._command("train_hvdyolo.py", pace, member),
                    *WITHOUT_WARM_UP,
                    *map(str, words),
                ]
                for member in range(alone)
            ],
            self._folder(name),
            members=ranks * alone,
            variables=as_root(),
        )

    def plain(self, name: str, *words: object) -> Training:
        """The plain form with two threads."""
        return Training(
            name,
            [[*self._command("plain_form.py", PACE), "--threads", "2", "--batch", str(BATCH),
              "--accumulation", str(NOMINAL // BATCH), *map(str, words)]],
            self._folder(name),
            members=1,
        )  # fmt: skip

    def ddp(self, name: str, accumulation: int) -> Training:
        """Two ranks of torch's DDP with a thread each."""
        return Training(
            name,
            [
                [*self._command("train_ddp.py", PACE, rank), "--ranks", "2", "--threads", "1",
                 "--accumulation", str(accumulation), "--loader.workers", "1"]
                for rank in range(2)
            ],
            self._folder(name),
            members=2,
            variables={"GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip

    def _folder(self, name: str) -> Path:
        return self.work / re.sub(r"\W+", "-", name)

    def _command(self, script: str, pace: Pace, member: int = 0) -> list[str]:
        words = pace_words(pace, member)
        return [sys.executable, str(HERE / script), "--data", str(self.data), *words]


# The loading that study_augment.py found to cost no AP: in bf16 on two cores it takes a third of the time.
CACHED_FUSED = (
    "--augment.resampling", "bilinear", "--augment.decoding", "coarse", "--augment.partners", "recent",
)  # fmt: skip
WITHOUT_WARM_UP = ("--train.epochs", "1", "--optimizer.warmup_epochs", "0")
ONE_THREAD = ("--distributed.threads", 1, "--loader.workers", 1)
MPIRUN = (str(BIN / "mpirun"), "-np", "2", "--bind-to", "none")


def main() -> int:
    """Returns 1 if a claim falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args()
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pack_photographs(Path(folder)), Path(folder) / "trainings")
        claims = [claim for part in options.parts for claim in PARTS[part](bench)]
    return report(claims)


def one_rank(bench: Bench) -> list[Claim]:
    """Against the plain form, with loading and without."""
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    plain, ours = bench.plain("plain form"), bench.hvdyolo("hvdyolo fp32")
    half_words = "--train.precision", "bf16", "--optimizer.nominal_batch", NOMINAL if supported else BATCH
    half_pace = PACE if supported else PACE_OF_EMULATION
    half = bench.hvdyolo("hvdyolo bf16", *half_words, pace=half_pace)
    alike = bench.hvdyolo("hvdyolo fp32, resampled as the plain form", "--augment.resampling", "bilinear")
    quick = bench.hvdyolo(
        "hvdyolo bf16, cached and fused loading", *half_words, *CACHED_FUSED, pace=half_pace
    )
    plain_steps = bench.plain("plain form, one batch", "--repeat")
    our_steps = bench.hvdyolo("hvdyolo fp32, one batch", "--repeat")
    if supported:
        halves, beside_halves = {"": half, ", cached and fused loading": quick}, plain
        take_turns([plain, ours, alike, *halves.values()], ROUNDS_A_LAUNCH, LAUNCHES)
    else:  # one of the two is enough of a wait, and one round of it
        halves, beside_halves = {"": half}, bench.plain("plain form, beside bf16")
        take_turns([plain, ours, alike], ROUNDS_A_LAUNCH, LAUNCHES)
        take_turns([beside_halves, half], ROUNDS_OF_EMULATION)
    take_turns([plain_steps, our_steps], ROUNDS_WITHOUT_LOADING)
    tell([plain, ours, alike, *halves.values(), plain_steps, our_steps])
    tell_ratio("without loading: fp32 / the plain form", our_steps, plain_steps)
    remark = "" if supported else ", which this processor does not support"
    return [
        claim("one rank: fp32 / the plain form", ours, plain, 1.3),
        claim("one rank: fp32, resampled as the plain form / the plain form", alike, plain, 1.3),
        *(
            claim(f"one rank: bf16{remark}{loading} / the plain form", training, beside_halves, 2.0)
            for loading, training in halves.items()
        ),
    ]


def two_ranks(bench: Bench, nominal: int = NOMINAL) -> list[Claim]:
    """Against two processes side by side, and against DDP."""
    accumulation = nominal // BATCH
    every = "a reduction every batch" if accumulation == 1 else f"a reduction every {accumulation} batches"
    ranks = bench.hvdyolo(
        f"two ranks, {every}",
        "--optimizer.nominal_batch", nominal, *ONE_THREAD,
        launcher=MPIRUN, ranks=2,
    )  # fmt: skip
    alone = bench.hvdyolo(
        f"two processes, {every}",
        "--train.batch", BATCH // 2, "--optimizer.nominal_batch", nominal // 2, *ONE_THREAD,
        alone=2,
    )  # fmt: skip
    ddp = bench.ddp(f"DDP with Gloo, {every}", accumulation)
    take_turns([alone, ranks, ddp], ROUNDS_A_LAUNCH, LAUNCHES)
    tell([alone, ranks, ddp])
    return [
        claim(f"two ranks, {every} / two processes alone", ranks, alone, 0.92),
        claim(f"two ranks, {every} / DDP with Gloo", ranks, ddp, 1.0),
    ]


def two_ranks_every_batch(bench: Bench) -> list[Claim]:
    """The same with as many reductions as batches."""
    return two_ranks(bench, nominal=BATCH)


PARTS = {
    "one-rank": one_rank,
    "two-ranks": two_ranks,
    "two-ranks-every-batch": two_ranks_every_batch,
}


def claim(name: str, ours: Training, other: Training, bar: float) -> Claim:
    """How many times as fast, the median over rounds; the spread is told."""
    tell_ratio(name, ours, other)
    return Claim(name, float(np.median(ratios(ours, other))), ">=", bar, "x")


def ratios(ours: Training, other: Training) -> NDArray[np.float64]:
    """Round by round."""
    return np.divide(ours.speeds, other.speeds)


def tell(trainings: Sequence[Training]) -> None:
    """Speeds with their spread, and what an image costs the trainings themselves."""
    for training in trainings:
        speeds = training.speeds
        print(
            f"{training.name}: {np.median(speeds):.1f} images/s ({min(speeds):.1f} … {max(speeds):.1f}), "
            f"{np.median(training.costs):.0f} ms of a processor an image without its loading"
        )


def tell_ratio(name: str, ours: Training, other: Training) -> None:
    """A ratio with its spread."""
    found = ratios(ours, other)
    print(f"{name}: {np.median(found):.3f} x ({found.min():.3f} … {found.max():.3f})", flush=True)


def pack_photographs(folder: Path, images: int = IMAGES) -> Path:
    """At least ``images`` of BCCD's, again and again, or drawn pictures where it is missing."""
    root = Path(os.environ.get("HVDYOLO_TEST_DATA", ROOT.parent / "shared" / "data")) / "bccd"
    source, out = folder / "source", folder / "packed"
    if (root / "JPEGImages").is_dir():
        kind = "voc"
        multiply(root, source, images)
    else:
        kind = "yolo"
        print(f"There is no BCCD in {root}: these figures are of drawn pictures.")
        write_dataset(source, images=images, classes=4, seed=0)
    if pack(["--source", kind, "--root", str(source), "--out", str(out)]) != 0:
        raise SystemExit("the photographs could not be packed")
    return out


def multiply(root: Path, out: Path, images: int) -> None:
    """The same photographs under several names each, ``images`` or more to train on."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (out / part).mkdir(parents=True)
    lists = {
        split: (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        for split in ("train", "val")
    }
    times = -(-images // len(lists["train"]))
    for split, names in lists.items():
        copies = [(name, f"{name}_{number}") for number in range(times) for name in names]
        for name, copy in copies:
            for part, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
                shutil.copyfile(root / part / f"{name}.{ending}", out / part / f"{copy}.{ending}")
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(copy for _, copy in copies) + "\n")


if __name__ == "__main__":
    sys.exit(main())
