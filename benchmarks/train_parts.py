"""What a training step spends its time on, part by part: hvdyolo's and the plain form's, on a GPU if it can.

    python benchmarks/train_parts.py --data PACKED [--description yolov5s --size 640 --precision bf16]
    mpirun -np N python benchmarks/train_parts.py …

The parts are the forms' own and are done one after the other, each to its end on the device, so their sum is
more than a step of training, which does not wait between them. Under ``mpirun``, one rank included, gradients
are reduced by Horovod, which begins in the backward pass; what is told is what is left of it after.
hvdyolo's loader workers assign boxes to cells; what that takes of a worker is told beside.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_form import PlainAverage, assign_levels, build_plain_optimizer, load, plain_loss

from hvdyolo.config import DistributedConfig, LoaderConfig
from hvdyolo.data.loader import TrainLoader, with_colours
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.worker_count import worker_count
from hvdyolo.data.workers import start_worker_server
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.device import choose_device, torch_threads
from hvdyolo.distributed.launch import choose_environment
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.world import World, launched_world
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Matches
from hvdyolo.engine.precision import reduced_precision
from hvdyolo.engine.training_parts import build_assigner, build_plan, count_cells
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import move_targets, pad_matches
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.settings import read_config
from hvdyolo.utils.cores import available_cores

_WARM = 3
_CLIP_NORM = 10.0


class Parts:
    """Seconds of named parts, each waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body."""
        started = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    @property
    def medians(self) -> dict[str, float]:
        """Milliseconds a part, after the first steps."""
        return {name: 1000 * float(np.median(found[_WARM:])) for name, found in self.seconds.items()}


def main() -> None:
    """Print the tables."""
    options = read_options()
    start_worker_server()
    world = launched_world() or World.alone()
    device = choose_device(world)
    torch.set_num_threads(options.threads or torch_threads(device, available_cores()))
    split = PackedSplit(options.data, "train")
    # First: the processes of its loader are forked, and MPI does not like that.
    plain = time_plain(options, split, device) if world.size == 1 else None
    comm = open_ranks()
    forms = {"hvdyolo": time_ours(options, split, comm, device)}
    if plain is not None:
        forms["plain form"] = plain
    if comm.world.rank == 0:
        precision = f"{options.precision}; the plain form in fp32"
        print(
            f"{options.description}, {options.size} pixels, {options.batch} images a rank, {precision}; "
            f"{comm.world.size} ranks, on {device}"
        )
        print("\n".join(table({name: parts.medians for name, parts in forms.items()})))
    comm.close()


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--description", default="yolov5n")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16, help="images a rank")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument(
        "--threads", type=int, help="torch threads and loader workers; by default a core each"
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", action="store_true", help="what torch spends the last step on, too")
    return parser.parse_args()


def open_ranks() -> Communicator:
    """Horovod's ranks under a launcher, or none; of one rank too, whose reduction is to be timed."""
    world = launched_world()
    if world is None:
        return SingleProcess()
    from hvdyolo.distributed.horovod_communicator import HorovodCommunicator

    chosen = choose_environment(DistributedConfig(), gpus=torch.cuda.is_available(), given=os.environ)
    os.environ.update(chosen)
    return HorovodCommunicator(world, chosen)


def time_ours(
    options: argparse.Namespace, split: PackedSplit, comm: Communicator, device: torch.device
) -> Parts:
    """The parts of hvdyolo's step, the first batches included."""
    size, batch = str(options.size), str(options.batch * comm.world.size)
    workers = [] if options.threads is None else ["--loader.workers", str(options.threads)]
    config = read_config("yolov5n_bccd", ["--loader.image_size", size, "--train.batch", batch, *workers])
    model = make_model(options, split, device)
    optimizer, average = build_plain_optimizer(model), MovingAverage(model, 0.9999, 2000.0)
    reduction = comm.reduce_gradients(optimizer, model)
    assigner = build_assigner(model, config.loss.anchor_threshold)
    loader: TrainLoader[Matches] = TrainLoader(
        split, build_plan(config, len(split)), config.loader, with_colours(config.augment, device), assigner,
        rank=comm.world.rank, size=comm.world.size, epochs=10_000, pinned=device.type == "cuda",
    )  # fmt: skip
    parts, assigned = Parts(device), []
    with loader:
        batches = iter(loader)
        for step in range(options.steps):
            with profiled(options, "hvdyolo", comm, device, step):
                with parts.part("waiting for the loader"):
                    loaded = next(batches)
                with parts.part("assignment"):
                    cells = count_cells(model, len(loaded.samples)).of(loaded.input_size)
                    padded = pad_matches(loaded.matches, cells)
                with parts.part("to the device"):
                    images, flip, gains, weights = (
                        None if tensor is None else tensor.to(device)
                        for tensor in (loaded.images, loaded.flip, loaded.colour_gains, loaded.weights)
                    )
                    targets = move_targets(padded, device)
                    assert images is not None
                    assert weights is not None
                    counts = StepCounts(weights.sum(), torch.stack([level.valid.sum() for level in targets]))
                with parts.part("colours, mirror, layout"):
                    inputs = prepare_images(images, flip, gains)
                reduction.begin(1)
                with parts.part("forward"), reduced_precision(options.precision, device):
                    levels = model(inputs)
                with parts.part("loss"):
                    floats = [level.float() for level in levels]
                    terms = detection_loss(floats, targets, weights, counts, config.loss, options.size)
                with parts.part("backward"):
                    terms.total.backward()  # type: ignore[no-untyped-call]
                with parts.part("reduction, what is left of it"):
                    reduction.wait()
                with parts.part("clipping"):
                    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
                with parts.part("optimizer"):
                    reduction.step()
                    reduction.zero_grad()
                with parts.part("moving average"):
                    average.update(model)
            started = time.perf_counter()
            assigner(loaded.labels, loaded.input_size, loaded.input_size)
            assigned.append(time.perf_counter() - started)
    if comm.world.rank == 0:
        print(f"hvdyolo: assignment in the workers: {1000 * np.median(assigned):.2f} ms a batch")
    return parts


def time_plain(options: argparse.Namespace, split: PackedSplit, device: torch.device) -> Parts:
    """The same parts of the plain form, in fp32."""
    model = make_model(options, split, device)
    optimizer, average = build_plain_optimizer(model), PlainAverage(model)
    workers = options.threads or worker_count(LoaderConfig())
    batches = load(split, options.batch, options.size, workers)
    parts = Parts(device)
    for step in range(options.steps):
        with profiled(options, "the plain form", SingleProcess(), device, step):
            with parts.part("waiting for the loader"):
                loaded, boxes = next(batches)
            with parts.part("to the device"):
                images, targets = loaded.to(device), boxes.to(device)
            with parts.part("colours, mirror, layout"):
                inputs = images.float() / 255
            with parts.part("forward"):
                levels = model(inputs)
            with parts.part("assignment"):
                matches = assign_levels(targets, model, levels)
            with parts.part("loss"):
                loss, _ = plain_loss(levels, matches, options.size)
            with parts.part("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            with parts.part("clipping"):
                torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            with parts.part("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            with parts.part("moving average"):
                average.update(model)
    return parts


def make_model(options: argparse.Namespace, split: PackedSplit, device: torch.device) -> DetectionModel:
    """The network, with the same weights every time."""
    torch.manual_seed(0)
    return build_model(options.description, len(split.names)).train().to(device)


@contextmanager
def profiled(
    options: argparse.Namespace, form: str, comm: Communicator, device: torch.device, step: int
) -> Iterator[None]:
    """Print torch's profile of the last step, if it is wanted."""
    wanted = options.profile and step == options.steps - 1 and comm.world.rank == 0
    profiler: AbstractContextManager[Any] = torch.profiler.profile() if wanted else nullcontext()
    with profiler as profile:
        yield
    if profile is not None:
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(f"{form}: a step, as torch's profiler tells")
        print(profile.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=50))


def table(forms: dict[str, dict[str, float]]) -> list[str]:
    """A line a part: milliseconds and share of each form; and how many times as long the last one takes."""
    wholes = [sum(medians.values()) for medians in forms.values()]
    lines = [f"{'':<32}" + "".join(f"{name:>22}" for name in forms)]
    for part in next(iter(forms.values())):
        cells = [
            f"{medians.get(part, 0):11.2f} ms {100 * medians.get(part, 0) / whole:5.1f} %"
            for medians, whole in zip(forms.values(), wholes, strict=True)
        ]
        lines.append(f"{part:<32}" + "".join(cells))
    sums = "".join(f"{whole:11.2f} ms        " for whole in wholes)
    ratio = f"  {wholes[-1] / wholes[0]:.2f} x" if len(wholes) > 1 else ""
    return [*lines, f"{'sum':<32}{sums}{ratio}"]


if __name__ == "__main__":
    main()
