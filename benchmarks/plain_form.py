"""Training in its plain form, from the published formulas: what hvdyolo's speed is compared with.

The network is hvdyolo's own, with the same weights. Everything around it is done the plain way:

- samples by the usual pipeline (``classical_pipeline.py``) in the processes of a torch DataLoader;
- contiguous float32 images;
- boxes are assigned to cells within the step, in the training process, by tensors whose shapes depend on
  how many match;
- the loss is normalised by the batch's own matches, and the moving average is updated tensor by tensor.

``train_speed.py`` starts it.
"""

import argparse
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from classical_pipeline import ClassicalPipeline, ClassicalSettings
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info
from train_rounds import gate_arguments, gated, open_gate

from hvdyolo.data.reader import PackedSplit
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective import yolov5_loss
from hvdyolo.ops.iou import complete_iou

THRESHOLD = 4.0
BALANCES = (4.0, 1.0, 0.4)
_SHIFTS = torch.tensor([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]]) * 0.5
_EMA_DECAY, _EMA_RAMP = 0.9999, 2000.0
_CLIP_NORM = 10.0

Batch = tuple[Tensor, Tensor]
"""uint8 (B, 3, H, W) and targets (n, 6): image, class, cx, cy, w, h in 0..1."""


class UsualSamples(Dataset[tuple[Tensor, Tensor]]):
    """Mosaic samples; each worker process has a pipeline of its own."""

    def __init__(self, split: PackedSplit, size: int) -> None:
        self._size = size
        self._encoded = [split.read(index) for index in range(len(split))]
        self._labels = [split.labels(index) for index in range(len(split))]
        self._pipeline: ClassicalPipeline | None = None

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._pipeline is None:
            worker = get_worker_info()
            seed = 0 if worker is None else worker.seed
            self._pipeline = ClassicalPipeline(
                self._encoded, self._labels, seed, ClassicalSettings(size=self._size)
            )
        image = np.empty((3, self._size, self._size), dtype=np.uint8)
        labels = self._pipeline.sample(index, image)
        return torch.from_numpy(image), torch.from_numpy(labels)


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    """One batch, each target with the number of its image."""
    numbered = [
        torch.cat([torch.full((len(labels), 1), float(number)), labels], 1)
        for number, (_, labels) in enumerate(samples)
    ]
    return torch.stack([image for image, _ in samples]), torch.cat(numbered)


@dataclass(frozen=True)
class Assigned:
    """The M matches of a batch at one level: where, and the box to learn there, in cells."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box_cxcywh: Tensor
    anchor_wh: Tensor
    label: Tensor


def assign(targets: Tensor, anchors: Tensor, height: int, width: int) -> Assigned:
    """Match targets (n, 6) with anchors (A, 2), in cells; shapes depend on the data from the mask on."""
    grid = torch.tensor([width, height], dtype=torch.float32, device=targets.device)
    centres, sizes = targets[:, 2:4] * grid, targets[:, 4:6] * grid
    ratios = sizes[None] / anchors[:, None]  # (A, n, 2)
    fits = torch.maximum(ratios, 1 / ratios).amax(2) < THRESHOLD
    anchor, row = fits.nonzero(as_tuple=True)
    centre = centres[row]
    inverse = grid - centre
    low = (centre % 1 < 0.5) & (centre > 1)
    high = (inverse % 1 < 0.5) & (inverse > 1)
    taken = torch.stack([torch.ones_like(low[:, 0]), low[:, 0], low[:, 1], high[:, 0], high[:, 1]])
    shift, match = taken.nonzero(as_tuple=True)
    anchor, row, centre = anchor[match], row[match], centre[match]
    cell = (centre - _SHIFTS.to(targets.device)[shift]).long()
    column, line = cell[:, 0].clamp(0, width - 1), cell[:, 1].clamp(0, height - 1)
    return Assigned(
        image=targets[row, 0].long(),
        anchor=anchor,
        row=line,
        column=column,
        box_cxcywh=torch.cat([centre - torch.stack([column, line], 1), sizes[row]], 1),
        anchor_wh=anchors[anchor],
        label=targets[row, 1].long(),
    )


def assign_levels(targets: Tensor, model: DetectionModel, levels: Sequence[Tensor]) -> list[Assigned]:
    """The matches of targets (n, 6) at each level."""
    return [
        assign(targets, anchors, raw.shape[2], raw.shape[3])
        for raw, anchors in zip(levels, model.head.anchors, strict=True)
    ]


def plain_loss(levels: Sequence[Tensor], assigned: Sequence[Assigned], size: int) -> tuple[Tensor, Tensor]:
    """The loss of a batch times its images, and its three terms for people."""
    device = levels[0].device
    box, objectness, classification = (torch.zeros(1, device=device) for _ in range(3))
    classes = levels[0].shape[-1] - 5
    for raw, found, balance in zip(levels, assigned, BALANCES, strict=True):
        quality = torch.zeros(raw.shape[:-1], device=device)
        if len(found.image):
            where = (found.image, found.anchor, found.row, found.column)
            matched = raw[where]
            centre = matched[:, 0:2].sigmoid() * 2 - 0.5
            sides = (matched[:, 2:4].sigmoid() * 2) ** 2 * found.anchor_wh
            iou = complete_iou(torch.cat([centre, sides], 1), found.box_cxcywh)
            box = box + (1 - iou).mean()
            quality[where] = iou.detach().clamp(0)
            wanted = torch.zeros_like(matched[:, 5:])
            wanted[torch.arange(len(wanted)), found.label] = 1
            classification = classification + binary_cross_entropy_with_logits(matched[:, 5:], wanted)
        objectness = objectness + balance * binary_cross_entropy_with_logits(raw[..., 4], quality)
    terms = torch.cat(
        [box * 0.05, objectness * (size / 640) ** 2, classification * (0.5 * classes / 80)]
    )  # gains for three levels
    return terms.sum() * len(levels[0]), terms.detach()


class PlainAverage:
    """The moving average, tensor by tensor."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards ``model``."""
        self.updates += 1
        decay = _EMA_DECAY * (1 - math.exp(-self.updates / _EMA_RAMP))
        current = model.state_dict()
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                value *= decay
                value += (1 - decay) * current[name]


def build_plain_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Three groups, of which weight matrices decay."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    others = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 and not name.endswith("bias")
    ]
    return torch.optim.SGD(
        [{"params": biases}, {"params": decayed, "weight_decay": 5e-4}, {"params": others}],
        lr=0.01,
        momentum=0.937,
        nesterov=True,
    )


def train_plainly(model: DetectionModel, batches: Iterator[Batch], accumulation: int) -> None:
    """Take steps until the batches end the process."""
    optimizer, average = build_plain_optimizer(model), PlainAverage(model)
    device = model.head.anchors.device
    mean = torch.zeros(3, device=device)
    for number, (images, targets) in enumerate(batches, start=1):
        levels = model(images.to(device, non_blocking=True).float() / 255)
        assigned = assign_levels(targets.to(device), model, levels)
        loss, terms = plain_loss(levels, assigned, images.shape[2])
        loss.backward()
        mean = (mean * (number - 1) + terms) / number
        if number % accumulation == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)


def load(split: PackedSplit, batch: int, size: int, workers: int) -> Iterator[Batch]:
    """Batches for ever."""
    samples = UsualSamples(split, size)
    loader = DataLoader(
        samples,
        batch_size=batch,
        sampler=RandomSampler(samples),
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def check_loss(model: DetectionModel, size: int) -> None:
    """See that the plain loss is hvdyolo's: a faster one that computes something else would prove nothing."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=random)
    boxes = torch.rand(40, 4, generator=random) * 0.4 + torch.tensor([0.3, 0.3, 0.05, 0.05])
    numbers = torch.arange(40)[:, None]
    targets = torch.cat([numbers % 2, numbers % 3, boxes], 1)
    with torch.no_grad():
        levels = model(images)
        plain, _ = plain_loss(levels, assign_levels(targets, model, levels), size)
        expected = yolov5_loss(model, images, targets)["total"]
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=0)


def main() -> None:
    """Train until the benchmark ends it."""
    parser = argparse.ArgumentParser()
    gate_arguments(parser)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--accumulation", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of torch")
    parser.add_argument("--workers", type=int, help="loader processes; by default as many")
    parser.add_argument("--description", default="yolov5n")
    parser.add_argument("--size", type=int, default=320)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    split = PackedSplit(options.data, "train")
    model = build_model(options.description, len(split.names)).train()
    check_loss(model, options.size)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    batches = load(split, options.batch, options.size, workers=options.workers or options.threads)
    gate = open_gate(options)
    train_plainly(
        model, gated(batches, gate, lambda batch: len(batch[0]), options.repeat), options.accumulation
    )


if __name__ == "__main__":
    main()
