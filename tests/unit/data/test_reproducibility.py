"""What training sees follows from seed and data: not from ranks, workers or interruptions."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from streams import STREAMS, Loaded, Stream, short_stream

from hvdyolo.data.order import RECENT
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.workers import start_worker_server
from hvdyolo.engine.checkpoint import latest_checkpoint, read_state

BATCH, EPOCHS = 8, 3
# Between them they have every part; the others put the same parts together otherwise, and are tried less.
THOROUGHLY = ["exact order", "cached in block order"]

# Prints each batch of a training and waits for a line, before it goes on with the next.
TRAINING = """
import dataclasses, json, sys
from pathlib import Path
from streams import short_stream
root, name, checkpoints = sys.argv[1:]
for loaded in short_stream(Path(root), name).train(Path(checkpoints), workers=2):
    print(json.dumps(dataclasses.asdict(loaded)), flush=True)
    sys.stdin.readline()
"""


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


@pytest.fixture
def stream(packed: Callable[..., Any], request: pytest.FixtureRequest) -> Stream:
    # 10 batches an epoch; 6 slots of the last only fill it.
    return Stream.of(packed(shards=2, each=37, polygons=True).root, request.param, BATCH, EPOCHS)


@pytest.fixture
def short_root(packed: Callable[..., Any]) -> Path:
    """The data of a short stream."""
    root: Path = packed(shards=3, each=13, polygons=True).root
    return root


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
    alone = stream.load(batches=epoch)
    assert len({digest for loaded in alone for digest in loaded.slots}) == epoch * BATCH
    for ranks, workers in [(1, 1), (1, 2), (1, 7), (2, 0), (4, 0), (8, 0), (3, 2)]:
        assert stream.load(ranks, workers, batches=epoch) == alone, f"{ranks} ranks, {workers} workers"


@pytest.mark.parametrize("name", ["exact order", "cached"])  # block order is slow for so few samples
def test_the_rest_is_the_same_whoever_goes_on_at_whatever_step(
    short_root: Path, tmp_path: Path, name: str
) -> None:
    start_worker_server()
    stream = short_stream(short_root, name)
    whole = list(stream.train(tmp_path / "checkpoints"))
    checkpoints = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert (len(whole), len(checkpoints)) == (20, 17)
    draw = random.Random(0)
    kills = draw.sample(list(itertools.product(checkpoints, (2, 3, 4))), 50)
    for number, (checkpoint, ranks) in enumerate(kills):
        workers = draw.choice((1, 2)) if number % 10 == 0 else 0  # processes take their time to start
        assert_goes_on(stream, whole, checkpoint, ranks, workers)


def test_a_training_that_is_killed_goes_on_as_if_it_had_not_been(short_root: Path, tmp_path: Path) -> None:
    name, checkpoints = "cached in block order", tmp_path / "checkpoints"
    stream = short_stream(short_root, name)
    whole = stream.load()
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, short_root, name, checkpoints],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        assert training.stdin is not None
        assert training.stdout is not None
        for loaded in whole[:13]:
            assert json.loads(training.stdout.readline()) == asdict(loaded)
            training.stdin.write("\n")
            training.stdin.flush()
        os.killpg(training.pid, signal.SIGKILL)  # somewhere on its way to the next batch
    assert training.returncode == -signal.SIGKILL
    checkpoint = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert read_state(checkpoint).step in (12, 13)
    assert_goes_on(stream, whole, checkpoint, ranks=3, workers=1)


def assert_goes_on(stream: Stream, whole: list[Loaded], checkpoint: Path, ranks: int, workers: int) -> None:
    """From where a checkpoint says to its end, the stream is what it is as a whole."""
    state = read_state(checkpoint)
    start = state.epoch, state.batch
    rest = [loaded for loaded in whole if (loaded.epoch, loaded.batch) >= start]
    assert 0 < len(rest) < len(whole)
    assert stream.load(ranks, workers, start) == rest, f"from {start} on {ranks} ranks, {workers} workers"


@other_streams
def test_any_way_through_an_epoch_is_the_same(stream: Stream) -> None:
    start_worker_server()
    epoch = stream.plan.batches_per_epoch
    alone = stream.load(batches=2 * epoch)
    for ranks, workers, first in [(3, 0, 0), (1, 2, epoch // 2), (2, 1, epoch + 1)]:
        start = alone[first].epoch, alone[first].batch
        assert stream.load(ranks, workers, start, 2 * epoch - first) == alone[first:]


@every_stream
def test_seed_and_order_change_what_is_seen(stream: Stream) -> None:
    (seen,) = stream.load(batches=1)
    other_order: Literal["exact", "block"] = "block" if stream.plan.order == "exact" else "exact"
    for plan in (replace(stream.plan, seed=12), replace(stream.plan, order=other_order)):
        (other,) = replace(stream, plan=plan).load(batches=1)
        assert not {*other.slots} & {*seen.slots}


@cached_streams
def test_kept_images_save_decoding(stream: Stream) -> None:
    split = _CountingSplit(stream.split)
    counted = replace(stream, split=split)  # type: ignore[arg-type]  # it is used as one
    assert counted.load() == stream.load()
    turns = len(stream) * BATCH
    # Some never show; those of the first batches' partners come on top.
    assert turns / 2 < split.reads <= turns + RECENT * BATCH
