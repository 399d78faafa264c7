"""Images a second of training on a GPU: YOLOv5s at 640 pixels in each precision, against the plain form.

    python benchmarks/train_gpu.py [--batch 32]

As ``train_speed.py``: whole loops with real loading, in turns. ``gpu.sh`` calls it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from train_rounds import Pace, Training, pace_words, take_turns
from train_speed import BIN, HERE, WITHOUT_WARM_UP, as_root, pack_photographs, ratios, tell

from hvdyolo.config import LoaderConfig
from hvdyolo.data.worker_count import worker_count
from hvdyolo.settings import read_config
from hvdyolo.utils.cores import available_cores
from hvdyolo.utils.errors import UsageError

ACCUMULATION = 2
PACE = Pace(warm=16, timed=48)  # a round takes seconds; loaders have a few batches ready before it
ROUNDS = 3
NETWORK, SIZE = "yolov5s", 640
_UTILISATION_MILLISECONDS = 100

VARIANTS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": ("--train.precision", "bf16"),
    "fp16": ("--train.precision", "fp16"),
    "bf16, compiled": ("--train.precision", "bf16", "--train.compile", "true"),
    "bf16, CUDA graphs": ("--train.precision", "bf16", "--train.cuda_graphs", "true"),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images a GPU")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use.")
    gpus = torch.cuda.device_count()
    print(f"{gpus} x {torch.cuda.get_device_name()}, {available_cores()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        # One epoch, and no round may meet its end.
        images = (ROUNDS + 2) * (PACE.warm + PACE.timed) * options.batch * gpus
        data, work = pack_photographs(Path(folder), images), Path(folder) / "trainings"
        plain = plain_form(data, work, options.batch)
        trainings = [train(name, words, data, work, options.batch, 1) for name, words in variants().items()]
        if gpus > 1:
            words = VARIANTS["bf16"]
            trainings.append(train(f"bf16, {gpus} ranks", words, data, work, options.batch, gpus))
        with utilisation() as percents:
            for training in (plain, *trainings):
                training.percents = percents
            take_turns([plain, *trainings], ROUNDS)
        tell([plain, *trainings])
        for training in (plain, *trainings):
            found = ratios(training, plain)
            print(
                f"{training.name} / the plain form in fp32: {np.median(found):.2f} x "
                f"({found.min():.2f} … {found.max():.2f}); GPU utilisation {np.median(training.busy):.0f} %"
            )
        for precision in ("fp32", "bf16"):
            show_parts(data, options.batch, precision, gpus)


@dataclass
class GpuTraining(Training):
    """A training that keeps how busy the GPUs were in its rounds.

    Attributes:
        percents: what all samples of utilisation so far said, of all trainings.
        busy: the mean of the busiest half of a round's samples; its warm batches and its end are in the rest.
    """

    percents: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def take_round(self) -> None:
        """As any training's."""
        before = len(self.percents)
        super().take_round()
        found = sorted(self.percents[before:])
        self.busy.append(float(np.mean(found[len(found) // 2 :] or [0])))


def variants() -> dict[str, tuple[str, ...]]:
    """Those whose settings this version has."""
    known = {}
    for name, words in VARIANTS.items():
        try:
            read_config(None, words)
        except UsageError as error:
            print(f"{name} is left out: {error}")
        else:
            known[name] = words
    return known


def train(name: str, words: tuple[str, ...], data: Path, work: Path, batch: int, ranks: int) -> GpuTraining:
    """``hvdyolo train`` with ``batch`` images a rank."""
    launcher = [str(BIN / "mpirun"), "-np", str(ranks)] if ranks > 1 else []
    images = batch * ranks
    script = [sys.executable, str(HERE / "train_hvdyolo.py"), "--data", str(data), *pace_words(PACE)]
    network = ["--model.description", NETWORK, "--loader.image_size", str(SIZE)]
    batches = ["--train.batch", str(images), "--optimizer.nominal_batch", str(images * ACCUMULATION)]
    return GpuTraining(
        name,
        [[*launcher, *script, *WITHOUT_WARM_UP, *network, *batches, *words]],
        work / name.replace(", ", "-").replace(" ", "-"),
        members=ranks,
        variables=as_root(),
    )


def plain_form(data: Path, work: Path, batch: int) -> GpuTraining:
    """The plain form in fp32."""
    workers = worker_count(LoaderConfig())  # as many as hvdyolo
    return GpuTraining(
        "plain form, fp32",
        [
            [sys.executable, str(HERE / "plain_form.py"), "--data", str(data), *pace_words(PACE),
             "--threads", "1", "--workers", str(workers),
             "--batch", str(batch), "--accumulation", str(ACCUMULATION),
             "--description", NETWORK, "--size", str(SIZE)]
        ],
        work / "plain",
        members=1,
    )  # fmt: skip


def show_parts(data: Path, batch: int, precision: str, gpus: int) -> None:
    """What a step spends its time on, reduction by Horovod included, and torch's profile of one."""
    # A launcher of one rank too: without one there is no reduction.
    subprocess.run(
        [
            str(BIN / "mpirun"), "-np", str(gpus), "--bind-to", "none",
            sys.executable, str(HERE / "train_parts.py"), "--data", str(data), "--description", NETWORK,
            "--size", str(SIZE), "--batch", str(batch), "--precision", precision,
            "--steps", "20", "--profile",
        ],
        env=os.environ | as_root(),
        check=True,
    )  # fmt: skip


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Percent of each tenth of a second, of all GPUs, while the body runs."""
    percents: list[float] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
             f"--loop-ms={_UTILISATION_MILLISECONDS}"]  # fmt: skip
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout
        reader = threading.Thread(target=lambda: percents.extend(map(float, lines)), daemon=True)
        reader.start()
        try:
            yield percents
        finally:
            process.terminate()
            reader.join()


if __name__ == "__main__":
    main()
