"""What is said of an output from outside, while it grows and when it is damaged."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hvdyolo.engine.detection_plan import Plan, commit_plan
from hvdyolo.engine.detection_status import DetectionTotals, check_parts, detection_status
from hvdyolo.engine.parts import Failed, Found, Parts
from hvdyolo.utils.errors import DataError, UsageError
from hvdyolo.utils.process_identity import ProcessIdentity

PLAN = Plan(5, 2, "images.jsonl", ("cat",), "/photos", {"weights": "abc"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two of three chunks are done, the third is claimed."""
    commit_plan(tmp_path, PLAN)
    (tmp_path / "parts").mkdir()
    (tmp_path / "claims").mkdir()
    parts = Parts(tmp_path, PLAN)
    boxes = [[0.0, 0.0, 1.0, 1.0]] * 3
    parts.commit(0, [Found("0", 0, 4, 4, boxes, [0.5] * 3, [0] * 3, False), Failed("1", 1, "empty", "")])
    parts.commit(2, [Found("4", 4, 4, 4, [], [], [], False)])
    holder = replace(ProcessIdentity.current(), host="node7", pid=4242, machine="another boot")
    (tmp_path / "claims/chunk-00000001.0").write_text(json.dumps(asdict(holder)) + "\n..")
    return tmp_path


def test_a_running_output(out: Path) -> None:
    status = detection_status(out)
    assert status.done == DetectionTotals(chunks=2, images=3, boxes=3, errors=1)
    assert not status.finished
    assert status.lines() == [
        "3 of 5 images (60.0 %), 2 of 3 chunks, 3 boxes, 1 bad images",
        "chunk 1: process 4242 on node7, 2 heartbeats",
        "not finished",
    ]


def test_a_finished_output(out: Path) -> None:
    parts = Parts(out, PLAN)
    with pytest.raises(DataError, match=r"lacks 1 of 3 parts, part-00000001\.jsonl first"):
        check_parts(parts, PLAN)
    parts.commit(1, [Failed("2", 2, "empty", ""), Failed("3", 3, "empty", "")])
    (out / "claims/chunk-00000001.0").unlink()
    assert detection_status(out).lines()[-1] == "finished"
    assert check_parts(parts, PLAN) == DetectionTotals(chunks=3, images=5, boxes=3, errors=3)


def test_damage_within_a_part_is_found_by_reading_it(out: Path) -> None:
    parts = Parts(out, PLAN)
    parts.commit(1, [Failed("2", 2, "empty", ""), Failed("3", 3, "empty", "")])
    path = parts.path(0)
    path.write_bytes(path.read_bytes().replace(b"[0.5, 0.5, 0.5]", b"[0.5, 0.5, 0.4]"))
    assert detection_status(out).finished  # it reads last lines only
    with pytest.raises(DataError, match="part-00000000"):
        check_parts(parts, PLAN)


def test_no_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no output of hvdyolo detect"):
        detection_status(tmp_path)
