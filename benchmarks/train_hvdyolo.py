"""``hvdyolo train`` as it is, but that it waits before a round. ``train_speed.py`` starts it."""

import argparse
from collections.abc import Iterator
from typing import Any

from train_rounds import gate_arguments, gated, open_gate

from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.engine import training
from hvdyolo.settings import read_config


def main() -> None:
    """Train until the benchmark ends it."""
    parser = argparse.ArgumentParser()
    gate_arguments(parser)
    options, overrides = parser.parse_known_args()
    config = read_config("yolov5n_bccd", overrides)
    accumulation = max(round(config.optimizer.nominal_batch / config.train.batch), 1)
    if options.warm % accumulation or options.timed % accumulation:
        # All batches of a step are loaded in one go: the clock would measure loading, or nothing.
        raise SystemExit(f"--warm and --timed must be multiples of {accumulation} batches, an optimizer step")
    gate = open_gate(options)

    class GatedLoader(TrainLoader[Any]):
        def __iter__(self) -> Iterator[TrainBatch[Any]]:
            return gated(super().__iter__(), gate, lambda batch: len(batch.samples), options.repeat)

    training.TrainLoader = GatedLoader  # type: ignore[misc]
    training.train(config, options.data, options.gate / f"run-{options.member}", "never", dry_run=False)


if __name__ == "__main__":
    main()
