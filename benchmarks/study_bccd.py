"""How good the trainer is: BCCD by one rank and by two, seeds 0 to 4, against YOLOv5's own trainer.

The recipe ``yolov5n_bccd`` is trained with each seed by one process and by ``horovodrun -np 2``, a thread a
process; the last epoch's moving average is scored on ``test`` and ``val``. Single processes run two at a
time. About 11 minutes a run on two quiet cores, two hours in all: a run that has ended is not done again,
and an interrupted one resumes.

    python benchmarks/study_bccd.py --work DIR [--seeds 5]
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bccd import LAUNCHERS, pack, score
from claims import Claim, report

RANKS = {"one rank": "single", "two ranks": "horovodrun"}
SPLITS = ("test", "val")
YOLOV5 = 0.415
"""Test AP of YOLOv5's own trainer on the same data and recipe: the mean of its seeds 0, 1, 2."""
LARGEST_DIFFERENCE = 0.02
TOGETHER = 2  # single processes at a time, a core each


def main() -> int:
    """Returns 1 if a mean is below YOLOv5's, or the ranks differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="packed data and runs; begun runs resume")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = pack(options.work)
    found: dict[str, list[dict[str, float]]] = {ranks: [] for ranks in RANKS}
    for first in range(0, options.seeds, TOGETHER):  # what an interrupted study has done is paired
        seeds = range(first, min(first + TOGETHER, options.seeds))
        with ThreadPoolExecutor(TOGETHER) as pool:
            alone = pool.map(lambda seed: measure("one rank", seed, options.work.resolve(), data), seeds)
            found["one rank"] += alone
        found["two ranks"] += [measure("two ranks", seed, options.work.resolve(), data) for seed in seeds]
    print("\n" + "\n".join(table(found)))
    return report(claims(found))


def measure(ranks: str, seed: int, work: Path, data: Path) -> dict[str, float]:
    """AP of one training, by split."""
    directory = work / f"{RANKS[ranks]}-{seed}"
    reports = {split: directory / f"scores-{split}.json" for split in SPLITS}
    if not all(path.exists() for path in reports.values()):
        words = ["--config", "yolov5n_bccd", "--data", data, "--run", directory, "--train.seed", seed]
        words += ["--distributed.threads", 1]
        LAUNCHERS[RANKS[ranks]](words)
        for split in SPLITS:
            score(directory, data, split)
    precisions = {split: float(json.loads(path.read_text())["ap"]) for split, path in reports.items()}
    print(f"{ranks}, seed {seed}: {precisions}", flush=True)
    return precisions


def table(found: Mapping[str, Sequence[dict[str, float]]]) -> list[str]:
    """AP of every run in Markdown, a row a seed."""
    columns = [(ranks, split) for ranks in RANKS for split in SPLITS]
    lines = [
        "| seed | " + " | ".join(f"{ranks}, {split}" for ranks, split in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    cells = np.array([[run[split] for run in found[ranks]] for ranks, split in columns]).T
    for name, row in [*enumerate(cells), ("mean", cells.mean(axis=0))]:
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in row) + " |")
    return [*lines, ""]


def claims(found: Mapping[str, Sequence[dict[str, float]]]) -> list[Claim]:
    """Of the means on ``test``."""
    test = {ranks: np.array([run["test"] for run in runs]) for ranks, runs in found.items()}
    difference = abs(float((test["two ranks"] - test["one rank"]).mean()))
    return [
        *(
            Claim(f"{ranks}, mean test AP", float(values.mean()), ">=", YOLOV5)
            for ranks, values in test.items()
        ),
        Claim("two ranks - one, mean over the seeds", difference, "<=", LARGEST_DIFFERENCE, "AP"),
    ]


if __name__ == "__main__":
    sys.exit(main())
