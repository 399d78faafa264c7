"""What faster ways to make training samples cost in average precision: BCCD, paired seeds.

Each mode trains the recipe ``yolov5n_bccd`` once with each seed, by one process with one thread, two runs
at a time, and is scored on ``test``. The difference of a mode from ``exact`` is taken seed by seed. About 25
minutes for two runs on two quiet cores, so hours in all: a run that has ended is not done again, and an
interrupted one resumes. Words of the kind ``--section.key VALUE`` are settings of all runs.

    python benchmarks/study_augment.py --work DIR [--seeds 5] [--modes exact fused cached-fused triangle]
        [--together 2]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from bccd import BIN, pack, run, score
from claims import Claim, report

FUSED = ["--augment.resampling", "bilinear", "--augment.decoding", "coarse"]
MODES = {
    "exact": ["--augment.resampling", "exact"],
    "triangle": ["--augment.resampling", "triangle"],
    "fused": FUSED,
    "cached-fused": [*FUSED, "--augment.partners", "recent"],
}
BAR = -0.02


def main() -> int:
    """Returns 1 if a mode loses more than the bar allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="packed data and runs; begun runs resume")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=[*MODES], default=[*MODES])
    parser.add_argument("--together", type=int, default=2, help="runs at a time, a core each")
    options, settings = parser.parse_known_args()
    if "exact" not in options.modes:
        parser.error("the others are compared with exact, which has to be among the modes")
    options.work.mkdir(parents=True, exist_ok=True)
    data = pack(options.work)
    # By seed first: what an interrupted study has done is paired.
    runs = [(mode, seed) for seed, mode in product(range(options.seeds), options.modes)]
    with ThreadPoolExecutor(options.together) as pool:
        precisions = list(pool.map(lambda one: measure(*one, options.work.resolve(), data, settings), runs))
    found = dict(zip(runs, precisions, strict=True))
    by_mode = {mode: [found[mode, seed] for seed in range(options.seeds)] for mode in options.modes}
    print("\n".join(table(by_mode)))
    return report(
        [
            Claim(
                f"{mode} - exact, mean over {options.seeds} seeds", difference(by_mode, mode), ">=", BAR, "AP"
            )
            for mode in options.modes
            if mode != "exact"
        ]
    )


def measure(mode: str, seed: int, work: Path, data: Path, settings: Sequence[str]) -> float:
    """AP on ``test`` of one training."""
    directory = work / f"{mode}-{seed}"
    if not (directory / "scores-test.json").exists():
        words = ["--config", "yolov5n_bccd", "--data", data, "--run", directory, "--train.seed", seed]
        words += ["--distributed.threads", 1, "--loader.workers", 0, *MODES[mode], *settings]
        run([BIN / "hvdyolo", "train", *words])
        score(directory, data, "test")
    precision = float(json.loads((directory / "scores-test.json").read_text())["ap"])
    print(f"{mode}, seed {seed}: AP {precision:.4f}", flush=True)
    return precision


def difference(by_mode: dict[str, list[float]], mode: str) -> float:
    """Mean of the paired differences from ``exact``."""
    return float(np.mean(np.subtract(by_mode[mode], by_mode["exact"])))


def table(by_mode: dict[str, Sequence[float]]) -> list[str]:
    """AP of every run in Markdown, a row a seed."""
    lines = ["| seed | " + " | ".join(by_mode) + " |", "|---" * (1 + len(by_mode)) + "|"]
    for seed, row in enumerate(zip(*by_mode.values(), strict=True)):
        lines.append(f"| {seed} | " + " | ".join(f"{value:.4f}" for value in row) + " |")
    means = " | ".join(f"{np.mean(values):.4f}" for values in by_mode.values())
    return [*lines, f"| mean | {means} |", ""]


if __name__ == "__main__":
    sys.exit(main())
