"""What a training step spends its time on, part by part, on a GPU if there is one.

    python benchmarks/train_parts.py --data PACKED [--description yolov5s --size 640 --precision bf16]

The parts are hvdyolo's own and are done one after the other, each to its end on the device, so their sum is
a little more than a step of ``hvdyolo train``, which does not wait between them. Reduction over ranks is not
among them. Boxes are assigned to cells by the loader's workers; what that takes of a worker is told beside.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from plain_form import build_plain_optimizer

from hvdyolo.data.loader import TrainLoader
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.workers import start_worker_server
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.feed import Matches
from hvdyolo.engine.training_parts import build_assigner, build_plan, count_cells
from hvdyolo.models.build import build_model
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import pad_matches
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.settings import read_config

_WARM = 3
_HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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

    def table(self) -> list[str]:
        """A line a part: the median after the first steps, and its share."""
        medians = {name: float(np.median(found[_WARM:])) for name, found in self.seconds.items()}
        whole = sum(medians.values())
        lines = [f"{name:<28}{1000 * s:9.2f} ms {100 * s / whole:5.1f} %" for name, s in medians.items()]
        return [*lines, f"{'sum':<28}{1000 * whole:9.2f} ms"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--description", default="yolov5n")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=[*_HALF], default="fp32")
    parser.add_argument(
        "--threads", type=int, help="torch threads and loader workers; by default a core each"
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", action="store_true", help="what torch spends the last step on, too")
    options = parser.parse_args()
    start_worker_server()
    if options.threads:
        torch.set_num_threads(options.threads)
    workers = [] if options.threads is None else ["--loader.workers", str(options.threads)]
    size, batch = str(options.size), str(options.batch)
    config = read_config("yolov5n_bccd", ["--loader.image_size", size, "--train.batch", batch, *workers])
    split = PackedSplit(options.data, "train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model(options.description, len(split.names)).train().to(device)
    optimizer, average = build_plain_optimizer(model), MovingAverage(model, 0.9999, 2000.0)
    assigner = build_assigner(model, config.loss.anchor_threshold)
    loader: TrainLoader[Matches] = TrainLoader(
        split, build_plan(config, len(split)), config.loader, config.augment, assigner,
        rank=0, size=1, epochs=10_000, pinned=device.type == "cuda",
    )  # fmt: skip
    parts = Parts(device)
    assigned = []
    half = _HALF[options.precision]
    with loader:
        batches = iter(loader)
        for step in range(options.steps):
            last = step == options.steps - 1
            with torch.profiler.profile() if options.profile and last else nullcontext() as profile:
                with parts.part("waiting for the loader"):
                    loaded = next(batches)
                with parts.part("padding of matches"):
                    cells = count_cells(model, len(loaded.samples)).of(loaded.input_size)
                    padded = pad_matches(loaded.matches, cells)
                with parts.part("to the device"):
                    images, flip, gains, weights = (
                        None if tensor is None else tensor.to(device)
                        for tensor in (loaded.images, loaded.flip, loaded.colour_gains, loaded.weights)
                    )
                    targets = [level.to(device) for level in padded]
                    assert images is not None
                    assert weights is not None
                    counts = StepCounts(weights.sum(), torch.stack([level.valid.sum() for level in targets]))
                with parts.part("colours, mirror, layout"):
                    inputs = prepare_images(images, flip, gains)
                with parts.part("forward"), torch.autocast(device.type, half, enabled=half is not None):
                    levels = model(inputs)
                with parts.part("loss"):
                    terms = detection_loss(
                        [level.float() for level in levels],
                        targets,
                        weights,
                        counts,
                        config.loss,
                        options.size,
                    )
                with parts.part("backward"):
                    terms.total.backward()  # type: ignore[no-untyped-call]
                with parts.part("clipping"):
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
                with parts.part("optimizer"):
                    optimizer.step()
                    optimizer.zero_grad()
                with parts.part("moving average"):
                    average.update(model)
            started = time.perf_counter()
            assigner(loaded.labels, loaded.input_size, loaded.input_size)
            assigned.append(time.perf_counter() - started)
    print(f"{options.description}, {size} pixels, {batch} images, {options.precision}, on {device}")
    print("\n".join(parts.table()))
    print(f"assignment, in the workers: {1000 * np.median(assigned):.2f} ms a batch")
    if profile is not None:
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=50))


if __name__ == "__main__":
    main()
