"""The main job on real photographs: the recipe ``yolov5n_bccd``, once under each launcher.

Packs BCCD, trains, scores the last epoch's moving average on ``test`` and ``val``, and prints a table in
Markdown. Every launcher trains with the same seed, so what differs between the rows is rounding: three ways
to the same detector. About 10 minutes a launcher on two quiet cores.

    python benchmarks/bccd.py --work /tmp/bccd single horovodrun slurm

``slurm`` starts a SLURM of two nodes on this host, as the tests do (root, Debian's slurm-wlm and munge).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
HOUR = 3600.0

sys.path.insert(0, str(ROOT / "tests" / "slurm"))

BARS = {"ap": 0.36, "ap50": 0.62}
"""Least scores on ``test``."""


@dataclass(frozen=True)
class Row:
    """One launcher's result; ``steady`` is the median images a second of its epochs."""

    launcher: str
    command: str
    minutes: float
    steady: float
    scores: dict[str, dict[str, Any]]


def main() -> int:
    """Returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("launchers", nargs="+", choices=[*LAUNCHERS], metavar="single|horovodrun|slurm")
    parser.add_argument("--work", type=Path, required=True, help="packed data and runs; begun runs resume")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = pack(options.work)
    rows = []
    for launcher in options.launchers:
        rows.append(
            measure(launcher, data, options.work.resolve() / f"{launcher}-{options.seed}", options.seed)
        )
        print(f"{launcher}: {rows[-1].minutes:.1f} min, {rows[-1].scores['test']}", flush=True)
    print("\n" + "\n".join(table(rows)))
    return int(any(row.scores["test"][key] < bar for row in rows for key, bar in BARS.items()))


def pack(work: Path) -> Path:
    """BCCD, packed once."""
    out = work.resolve() / "packed"
    if not (out / "manifest.json").exists():
        source = Path(os.environ.get("HVDYOLO_TEST_DATA", ROOT.parent / "shared" / "data")) / "bccd"
        run([BIN / "hvdyolo", "pack", "--source", "voc", "--root", source, "--out", out])
    return out


def measure(launcher: str, data: Path, directory: Path, seed: int) -> Row:
    """Train and score under one launcher."""
    words = ["--config", "yolov5n_bccd", "--data", data, "--run", directory, "--train.seed", seed]
    started = time.monotonic()
    command = LAUNCHERS[launcher](words)
    minutes = (time.monotonic() - started) / 60
    return Row(
        launcher,
        command,
        minutes,
        steady_speed(directory),
        {split: score(directory, data, split) for split in ("test", "val")},
    )


def steady_speed(directory: Path) -> float:
    """Median over epochs of the images a second in training."""
    entries = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    speeds = sorted(entry["images_per_second"] for entry in entries if entry["kind"] == "epoch")
    return float(speeds[len(speeds) // 2])


def score(directory: Path, data: Path, split: str) -> dict[str, Any]:
    """COCO's scores of the last weights on one split, by a single process."""
    report = directory / f"scores-{split}.json"
    weights = directory / "weights" / "last.safetensors"
    run([BIN / "hvdyolo", "eval", "--weights", weights, "--data", data, "--split", split, "--json", report])
    scores = json.loads(report.read_text())
    return {key: round(scores[key], 4) for key in ("ap", "ap50", "ap75")}


def train_alone(words: list[object]) -> str:
    """One rank, all cores."""
    return run([BIN / "hvdyolo", "train", *words])


def train_by_horovodrun(words: list[object]) -> str:
    """Two ranks on this host."""
    return run([BIN / "horovodrun", "-np", 2, BIN / "hvdyolo", "train", *words])


def train_by_slurm(words: list[object]) -> str:
    """Two ranks on two nodes, by ``slurm/train.sh``."""
    with two_nodes(Path(str(words[5]) + ".slurm")) as cluster:
        options = ["--nodes=2", "--ntasks-per-node=1"]
        job = cluster.submit(ROOT / "slurm" / "train.sh", words, *options, variables=as_root())
        ended = cluster.wait_for_end(job, HOUR)
        if ended.exit_code != 0:
            raise SystemExit(ended.log)
    return f"sbatch {' '.join(options)} slurm/train.sh {' '.join(map(str, words))}"


@contextmanager
def two_nodes(directory: Path) -> Iterator[Any]:
    """A SLURM of two nodes on this host."""
    from cluster import Cluster  # of the tests

    directory.mkdir()
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


LAUNCHERS: dict[str, Callable[[list[object]], str]] = {
    "single": train_alone,
    "horovodrun": train_by_horovodrun,
    "slurm": train_by_slurm,
}


def as_root() -> dict[str, str]:
    """What Open MPI asks of root, who alone there is in a container."""
    if os.geteuid() != 0:
        return {}
    return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def run(command: list[object]) -> str:
    """Run a command to its end, its output shown; returns it as one line."""
    words = [str(word) for word in command]
    subprocess.run(words, check=True, env=os.environ | as_root())
    return " ".join(word.removeprefix(f"{BIN}/") for word in words)


def table(rows: list[Row]) -> list[str]:
    """The results in Markdown."""
    lines = [
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, "
        f"torch {version('torch')}, Horovod {version('horovod')}; {time.strftime('%Y-%m-%d')}",
        "",
        "| launcher | training | images/s | test AP | AP50 | AP75 | val AP | AP50 | AP75 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = [row.scores[split][key] for split in ("test", "val") for key in ("ap", "ap50", "ap75")]
        cells = [f"{row.minutes:.1f} min", f"{row.steady:.1f}", *(f"{value:.3f}" for value in scores)]
        lines.append(f"| {row.launcher} | {' | '.join(cells)} |")
    return [*lines, "", *(f"    {row.command}" for row in rows)]


def processor() -> str:
    """The processor's name."""
    text = Path("/proc/cpuinfo").read_text()
    return next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), "unknown")


if __name__ == "__main__":
    sys.exit(main())
