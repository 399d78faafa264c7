"""``data_tools/inspect.py --augment``: pictures of what training sees."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdyolo.config import Config
from hvdyolo.data.draw import draw_detections
from hvdyolo.data.inspection import Parser, label_corners
from hvdyolo.data.loader import TrainBatch, TrainLoader, check_packages
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.input_size import check_image_size
from hvdyolo.engine.training_parts import (
    build_image_weighting,
    build_input_sizes,
    build_plan,
    build_schedule,
)
from hvdyolo.models.build import build_model
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.settings import read_config
from hvdyolo.utils.errors import UsageError
from hvdyolo.utils.files import make_directory


def main(arguments: Sequence[str]) -> int:
    """The command line of ``data_tools/inspect.py`` with ``--augment``."""
    options, overrides = _parse(arguments)
    config = read_config(options.config, overrides)
    manifest = read_manifest(options.path)
    if options.split not in manifest.splits:
        raise UsageError(
            f"--split: {options.path} has no split '{options.split}'; it has {', '.join(manifest.splits)}."
        )
    check_packages(config.augment)
    make_directory(options.out)
    split = PackedSplit(
        options.path,
        options.split,
        verify=config.loader.verify,
        outlines=config.augment.copy_paste > 0,
    )
    for path in draw_inputs(config, split, options.count, options.out, options.split):
        sys.stdout.write(f"{path}\n")
    return 0


def draw_inputs(config: Config, split: PackedSplit, count: int, out: Path, prefix: str) -> Iterator[Path]:
    """Save what the network sees of the first ``count`` batches' first images, with their boxes, as PNGs.

    These are the pixels and the labels of a training with these settings, bit by bit but for rounding: after
    colours and mirror, at the size of the step. Weighted images are those of before any score. Returns paths,
    each when it is written.

    Raises:
        UsageError: the configuration does not fit the model.
        DataError: a sample is damaged.
    """
    plan = build_plan(config, len(split))
    for batch in islice(_first_slots(config, split, plan, count), count):
        images = prepare_images(batch.images, batch.flip, batch.colour_gains, size=batch.input_size)
        pixels = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy()
        labels = batch.labels[0]
        boxes = label_corners(labels, batch.input_size, batch.input_size)
        path = out / f"{prefix}-epoch-{batch.epoch}-batch-{batch.index:06d}-sample-{batch.samples[0]:06d}.png"
        draw_detections(pixels, boxes, labels[:, 0].astype(np.int64), None, split.names, path)
        yield path


def _first_slots(
    config: Config, split: PackedSplit, plan: BatchPlan, count: int
) -> Iterator[TrainBatch[None]]:
    """The first image of every batch: the share of the first of as many ranks as there are images."""
    with torch.device("meta"):
        model = build_model(config.model.description, len(split.names))
    check_image_size("loader.image_size", config.loader.image_size, model)
    schedule = build_schedule(config, plan)
    weighting = build_image_weighting(config, split)
    loader = TrainLoader(
        split,
        plan,
        replace(config.loader, workers=0),  # these few are there before a worker would be
        config.augment,
        _assign_nothing,
        rank=0,
        size=plan.batch,
        epochs=-(-count // plan.batches_per_epoch),
        input_size=build_input_sizes(config, schedule, model).at,
        draw=None if weighting is None else weighting.draw,
    )
    with loader:
        yield from loader


def _assign_nothing(*_: Any) -> None:
    """Pictures show labels, not what cells learn of them."""


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        "inspect --augment",
        description="Draw what the network sees in training: the first image of each of the first batches.",
        epilog="Settings of the recipe are changed by --section.key VALUE.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, help="a packed dataset")
    parser.add_argument("--augment", action="store_true", required=True, help="as training sees it")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures with boxes")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--count", "--samples", type=int, default=8, help="pictures (default: 8)")
    parser.add_argument(
        "--config", action="append", help="a recipe, or its file; the defaults without; of several, later win"
    )
    options, overrides = parser.parse_known_args(arguments)
    if options.count < 0:
        raise UsageError(f"--count must not be negative, and is {options.count}.")
    return options, overrides
