"""What training sees follows from seed and data: not from ranks, workers or interruptions."""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest

from hvdyolo.config import AugmentConfig, LoaderConfig, OptimizerConfig
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.workers import start_worker_server
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.objective.assign import Assigner

EPOCHS = 6
BATCH = 8
# Most slots are mosaics and all are turned: every kind of draw shows in the pixels.
AUGMENT = AugmentConfig(
    mosaic=0.8,
    mosaic_9=0.3,
    degrees=10.0,
    shear=3.0,
    perspective=0.1,
    mixup=0.4,
    copy_paste=0.7,
    cutout=0.3,
    autoaugment="v1",
    flip_up_down=0.5,
)
EXACT = replace(AUGMENT, resampling="exact", colours="workers")
CACHED = replace(AUGMENT, resampling="bilinear", partners="recent", colours="workers")
ASSIGN = Assigner((8, 16, 32), np.full((3, 3, 2), 16, dtype=np.float32), 4.0)
Digest = str


@dataclass(frozen=True)
class Stream:
    """The batches of one training, loaded in whatever way."""

    split: PackedSplit
    plan: BatchPlan
    augment: AugmentConfig

    def __len__(self) -> int:
        return EPOCHS * self.plan.batches_per_epoch

    def digests(
        self, ranks: int = 1, workers: int = 0, start: int = 0, batches: int | None = None
    ) -> list[list[Digest]]:
        """From batch ``start`` on, a digest of each slot of the global batch, for each batch."""
        shares = [self._share(rank, ranks, workers, start, batches) for rank in range(ranks)]
        return [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]

    def _input_sizes(self) -> InputSizes:
        """Two batches make a step."""
        settings = OptimizerConfig(warmup_epochs=0.0, nominal_batch=2 * BATCH)
        schedule = TrainingSchedule(settings, EPOCHS, self.plan.batches_per_epoch, BATCH)
        return InputSizes(schedule, self.plan.seed, image_size=64, stride=32, fraction=0.5)

    def _share(
        self, rank: int, ranks: int, workers: int, start: int, batches: int | None
    ) -> list[list[Digest]]:
        epoch, batch = divmod(start, self.plan.batches_per_epoch)
        state = json.loads(json.dumps({"epoch": epoch, "batch": batch}))
        with TrainLoader(
            self.split,
            self.plan,
            LoaderConfig(image_size=64, workers=workers),
            self.augment,
            ASSIGN,
            rank=rank,
            size=ranks,
            epochs=EPOCHS,
            start_epoch=state["epoch"],
            start_batch=state["batch"],
            input_size=self._input_sizes().at,
        ) as loader:
            assert len(loader) == len(self) - start
            return [slot_digests(loaded) for loaded in itertools.islice(loader, batches)]


@dataclass
class _CountingSplit:
    """A split that counts its reads."""

    split: PackedSplit
    reads: int = 0

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    def read(self, index: int) -> bytes:
        self.reads += 1
        return self.split.read(index)


def learnt(batch: TrainBatch[Any], slot: int) -> Iterator[np.ndarray]:
    """What the cells of one image are to learn, a level; cells are counted from the image's first."""
    for level, stride in enumerate(ASSIGN.strides):
        cells = 3 * (batch.input_size // stride) ** 2
        for part in batch.matches:
            own = part[level].cell // cells == slot
            yield part[level].cell[own] % cells
            yield part[level].box_cxcywh[own]


def slot_digests(batch: TrainBatch[Any]) -> list[Digest]:
    digests = []
    for slot, sample in enumerate(batch.samples):
        digest = hashlib.sha256(f"{batch.epoch} {batch.index} {sample} {batch.input_size}".encode())
        for tensor in (batch.weights, batch.flip, batch.colour_gains, batch.images):
            if tensor is not None:
                digest.update(tensor[slot].numpy().tobytes())
        digest.update(batch.labels[slot].tobytes())
        for label_and_cell in learnt(batch, slot):
            digest.update(label_and_cell.tobytes())
        digests.append(digest.hexdigest())
    return digests


STREAMS: dict[str, tuple[Literal["exact", "block"], AugmentConfig]] = {
    "exact order": ("exact", AUGMENT),
    "cached in block order": ("block", CACHED),
    "block order": ("block", AUGMENT),
    "exact pixels": ("exact", EXACT),
    "cached": ("exact", CACHED),
}
# Between them they have every part; the others put the same parts together otherwise, and are tried less.
THOROUGHLY = ["exact order", "cached in block order"]


@pytest.fixture
def stream(packed: Callable[..., Any], request: pytest.FixtureRequest) -> Stream:
    # 10 batches an epoch; 6 slots of the last only fill it.
    split = PackedSplit(packed(shards=2, each=37, polygons=True).root, "train", outlines=True)
    order, augment = STREAMS[request.param]
    plan = BatchPlan(len(split), BATCH, seed=11, order=order, partners=augment.partners)
    return Stream(split, plan, augment)


every_stream = pytest.mark.parametrize("stream", STREAMS, indirect=True)
thorough_streams = pytest.mark.parametrize("stream", THOROUGHLY, indirect=True)
other_streams = pytest.mark.parametrize(
    "stream", [name for name in STREAMS if name not in THOROUGHLY], indirect=True
)
cached_streams = pytest.mark.parametrize("stream", ["cached", "cached in block order"], indirect=True)


@thorough_streams
def test_an_epoch_is_the_same_for_any_workers_and_ranks(stream: Stream) -> None:
    start_worker_server()  # else each worker would import torch for itself
    epoch = stream.plan.batches_per_epoch
    alone = stream.digests(batches=epoch)
    assert len({digest for batch in alone for digest in batch}) == epoch * BATCH
    for ranks, workers in [(1, 1), (1, 2), (1, 7), (2, 0), (4, 0), (8, 0), (3, 2)]:
        assert stream.digests(ranks, workers, batches=epoch) == alone, f"{ranks} ranks, {workers} workers"


@thorough_streams
def test_a_stream_that_is_killed_goes_on_as_if_it_had_not_been(stream: Stream) -> None:
    whole = stream.digests()
    assert len(whole) == len(stream)
    starts = random.Random(0).sample(range(1, len(stream)), 50)
    for start in starts:
        # Of each rest its beginning, to save time; those below are gone through to the end.
        assert stream.digests(start=start, batches=2) == whole[start : start + 2], f"from batch {start}"
    for start, ranks, workers in [(starts[0], 1, 3), (starts[1], 5, 0), (len(stream) - 1, 2, 1)]:
        assert stream.digests(ranks, workers, start) == whole[start:], f"from batch {start}"


@other_streams
def test_any_way_through_an_epoch_is_the_same(stream: Stream) -> None:
    start_worker_server()
    epoch = stream.plan.batches_per_epoch
    alone = stream.digests(batches=2 * epoch)
    for ranks, workers, start in [(3, 0, 0), (1, 2, epoch // 2), (2, 1, epoch + 1)]:
        assert stream.digests(ranks, workers, start, 2 * epoch - start) == alone[start:]


@every_stream
def test_seed_and_order_change_what_is_seen(stream: Stream) -> None:
    (first,) = stream.digests(batches=1)
    other_order: Literal["exact", "block"] = "block" if stream.plan.order == "exact" else "exact"
    for plan in (replace(stream.plan, seed=12), replace(stream.plan, order=other_order)):
        (other,) = replace(stream, plan=plan).digests(batches=1)
        assert not {*other} & {*first}


@cached_streams
def test_kept_images_save_decoding(stream: Stream) -> None:
    split = _CountingSplit(stream.split)
    counted = replace(stream, split=split)  # type: ignore[arg-type]  # it is used as one
    assert counted.digests() == stream.digests()
    turns = len(stream) * BATCH
    # Some never show; those of the first batches' partners come on top.
    assert turns / 2 < split.reads < turns * 1.2
