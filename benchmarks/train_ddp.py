"""The same network, data and loss under torch's DistributedDataParallel with Gloo.

The batches are hvdyolo's own, as are preparation, loss and moving average: only the reduction differs, so
losses are normalised by each rank's own batch, and gradients averaged. ``train_speed.py`` starts it.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.distributed
from plain_form import build_plain_optimizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from train_rounds import gate_arguments, gated, open_gate

from hvdyolo.config import LossConfig
from hvdyolo.data.loader import TrainBatch, TrainLoader, with_colours
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.workers import start_worker_server
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Matches
from hvdyolo.engine.training_parts import build_assigner, build_plan, count_cells
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import pad_matches
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.settings import read_config
from hvdyolo.utils.freed_memory import keep_freed_memory


def main() -> None:
    """Train until the benchmark ends it."""
    parser = argparse.ArgumentParser()
    gate_arguments(parser)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--accumulation", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options, overrides = parser.parse_known_args()
    start_worker_server()
    keep_freed_memory(os.environ)  # as hvdyolo's ranks do
    torch.set_num_threads(options.threads)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{(options.gate / 'rendezvous').resolve()}",
        rank=options.member,
        world_size=options.ranks,
    )
    config = read_config("yolov5n_bccd", overrides)
    split = PackedSplit(options.data, "train")
    torch.manual_seed(0)
    model = build_model("yolov5n", len(split.names)).train()
    loader: TrainLoader[Matches] = TrainLoader(
        split,
        build_plan(config, len(split)),
        config.loader,
        with_colours(config.augment, torch.device("cpu")),
        build_assigner(model, config.loss.anchor_threshold),
        rank=options.member,
        size=options.ranks,
        epochs=1,
    )
    batches = gated(iter(loader), open_gate(options), lambda batch: len(batch.samples), options.repeat)
    train_with_ddp(model, batches, options.accumulation, config.loss)


def train_with_ddp(
    model: DetectionModel, batches: Iterator[TrainBatch[Matches]], accumulation: int, settings: LossConfig
) -> None:
    """Take steps until the batches end the process; gradients are reduced once a step."""
    # Buffers need not travel with each step, and gradients not be copied: this is DDP at its fastest.
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer, average = build_plain_optimizer(model), MovingAverage(model, 0.9999, 2000.0)
    for number, batch in enumerate(batches, start=1):
        ends = number % accumulation == 0
        with nullcontext() if ends else wrapped.no_sync():
            local_loss(wrapped, model, batch, settings).backward()  # type: ignore[no-untyped-call]
        if ends:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)


def local_loss(
    network: nn.Module, model: DetectionModel, batch: TrainBatch[Matches], settings: LossConfig
) -> torch.Tensor:
    """The loss of a rank's batch, normalised by its own images and matches."""
    images = prepare_images(batch.images, batch.flip, batch.colour_gains)
    targets = pad_matches(batch.matches, count_cells(model, len(batch.samples)).of(batch.input_size))
    counts = StepCounts(batch.weights.sum(), torch.stack([target.valid.sum() for target in targets]))
    return detection_loss(
        network(images), targets, batch.weights, counts, settings, batch.images.shape[1]
    ).total


if __name__ == "__main__":
    main()
