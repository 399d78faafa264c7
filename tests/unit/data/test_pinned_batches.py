"""Batches for a GPU lie in memory that it copies from on its own, and are the same."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import torch

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data import ahead
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit

SETTINGS = LoaderConfig(image_size=64, workers=2)


def assign_nothing(*_: object) -> None:
    """The assignment is not looked at."""


@contextmanager
def loading(
    split: PackedSplit, *, pinned: bool, settings: LoaderConfig = SETTINGS
) -> Iterator[Iterator[TrainBatch[None]]]:
    with TrainLoader(
        split, BatchPlan(12, 4, seed=0), settings, AugmentConfig(), assign_nothing,
        rank=0, size=1, epochs=3, pinned=pinned,
    ) as loader:  # fmt: skip
        yield iter(loader)


@pytest.fixture
def without_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is done for a GPU, where there is none."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: memory is not pinned")
def test_batches_are_pinned_and_not_overwritten(packed: Callable[..., Any]) -> None:
    split = PackedSplit(packed(each=12).root, "train")

    def load(pinned: bool) -> list[torch.Tensor]:
        with loading(split, pinned=pinned) as loaded:
            batches = [batch.images for batch in loaded]
        assert all(images.is_pinned() == pinned for images in batches)
        return [images.to("cuda", non_blocking=True) for images in batches]

    for found, expected in zip(load(pinned=True), load(pinned=False), strict=True):
        assert found.equal(expected)


@pytest.mark.usefixtures("without_pinning")
def test_batches_that_a_thread_copies_are_the_same(packed: Callable[..., Any]) -> None:
    split = PackedSplit(packed(each=12).root, "train")
    with loading(split, pinned=True) as loaded, loading(split, pinned=False) as plain:
        for found, expected in zip(loaded, plain, strict=True):
            assert (found.epoch, found.index, found.samples) == (
                expected.epoch,
                expected.index,
                expected.samples,
            )
            assert found.images.equal(expected.images)
            assert found.wait_seconds >= 0


@pytest.mark.usefixtures("without_pinning")
def test_an_end_in_the_middle_ends_the_workers(packed: Callable[..., Any]) -> None:
    with loading(PackedSplit(packed(each=12).root, "train"), pinned=True) as loaded:
        next(loaded)
        workers = [worker for worker in psutil.process_iter() if is_worker(worker)]
        assert len(workers) == SETTINGS.workers
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.usefixtures("without_pinning")
def test_workers_that_hang_do_not_hold_up_the_end(
    packed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_PATIENCE", 0.1)
    with loading(PackedSplit(packed(each=12).root, "train"), pinned=True) as loaded:
        next(loaded)
        workers = [worker for worker in psutil.process_iter() if is_worker(worker)]
        for worker in workers:
            worker.suspend()
        taken = time.monotonic()
    assert time.monotonic() - taken < 60
    assert not any(worker.is_running() for worker in workers)


def is_worker(process: psutil.Process) -> bool:
    """Whether it was forked for this process's loaders."""
    server = process.parent()
    return server is not None and server.ppid() == os.getpid() and "forkserver" in " ".join(server.cmdline())
