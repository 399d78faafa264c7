"""Chunks depend on source and settings alone; an output belongs to one fingerprint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.config import DetectConfig
from hvdyolo.engine.detection_plan import Plan, check_plan, chunk_size, commit_plan, read_plan
from hvdyolo.utils.errors import MismatchError, UsageError

PLAN = Plan(
    images=10,
    chunk=4,
    image_list="images-1.jsonl",
    class_names=("cat", "größer"),
    source="/photos",
    fingerprint={"weights": "abc", "detect.confidence": 0.25},
)


@pytest.mark.parametrize(
    ("images", "chunk", "batch", "expected"),
    [
        (1, 256, 16, 16),
        (364, 256, 16, 16),  # 23 chunks, one batch each
        (2000, 256, 16, 32),  # two batches make 63 chunks
        (16_384, 256, 16, 256),
        (10_000_000, 256, 16, 256),
        (100, 4, 16, 4),  # the setting is a limit
        (100, 256, 1, 2),
    ],
)
def test_chunk_size(images: int, chunk: int, batch: int, expected: int) -> None:
    assert chunk_size(images, DetectConfig(chunk=chunk, batch=batch)) == expected


@given(images=st.integers(1, 5000), chunk=st.integers(1, 300))
def test_chunks_partition_the_images(images: int, chunk: int) -> None:
    plan = replace(PLAN, images=images, chunk=chunk)
    assert [i for c in range(plan.chunks) for i in plan.ids(c)] == list(range(images))
    assert all(plan.ids(c) for c in range(plan.chunks))


def test_the_plan_is_read_as_written(tmp_path: Path) -> None:
    commit_plan(tmp_path, PLAN)
    assert read_plan(tmp_path) == PLAN
    commit_plan(tmp_path, replace(PLAN, source="/moved/photos"))  # the same images elsewhere
    assert read_plan(tmp_path) == PLAN


def test_another_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    commit_plan(tmp_path, PLAN)
    other = replace(PLAN, fingerprint={"weights": "abc", "detect.confidence": 0.1, "new": 1})
    for check in (commit_plan, check_plan):
        with pytest.raises(MismatchError) as failure:
            check(tmp_path, other)
        message = str(failure.value)
        assert "detect.confidence is 0.25 there and 0.1 now" in message
        assert "new is None there and 1 now" in message
        assert "weights" not in message
    assert read_plan(tmp_path) == PLAN


def test_no_plan_is_no_mismatch_and_no_output(tmp_path: Path) -> None:
    check_plan(tmp_path, PLAN)
    with pytest.raises(UsageError, match="no output of hvdyolo detect"):
        read_plan(tmp_path)
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(UsageError, match="no output of hvdyolo detect"):
        read_plan(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    commit_plan(tmp_path, PLAN)
    values = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**values, "version": 99}))
    with pytest.raises(MismatchError, match="99"):
        read_plan(tmp_path)


def test_digest_tells_fingerprints_apart_whatever_their_order() -> None:
    turned = replace(PLAN, fingerprint=dict(reversed(PLAN.fingerprint.items())))
    changed = replace(PLAN, fingerprint={**PLAN.fingerprint, "weights": "abd"})
    assert turned.digest == PLAN.digest != changed.digest
