"""Damages to a packed dataset, 1,000 and more: none is used, none crashes or hangs, each is named."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import damage_study

from hvdyolo.data.format import MANIFEST_NAME

Cases = list[dict[str, Any]]

UNREAD = ("structure", "padding")
"""What HDF5 alone needs."""


def study(data: Any) -> Cases:
    """What became of a dataset in each case."""
    command = [sys.executable, "-X", "faulthandler", damage_study.__file__, data.root]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return list(map(json.loads, ended.stdout.splitlines()))


def test_no_damage_is_used_and_none_crashes_or_hangs(packed: Callable[..., Any]) -> None:
    data = packed(shards=2, each=6)
    cases = study(data)
    assert len(cases) == 1100
    assert Counter(case["region"] for case in cases) == {**damage_study.FLIPS, "cut": 75}
    for case in cases:
        assert not case["wrong"], case
        # ``verify`` opens a shard whose images alone are damaged, training none.
        assert case["hdf5"] == (case["region"] == "data"), case
        assert case["found"] != only_newline(data.root, case), case
        if case["region"] == "data":
            # Known only when the image is read, and then of this image alone.
            assert (case["refused"], case["unreadable"]) == (False, [hit_sample(data, case)]), case
        elif case["region"] in UNREAD or only_newline(data.root, case):
            assert (case["refused"], case["unreadable"]) == (False, []), case
        else:
            assert case["refused"], case


def only_newline(root: Path, case: dict[str, Any]) -> bool:
    """Whether a cut takes the newline from the end of the manifest, whose digest is of what it says."""
    size = (root / MANIFEST_NAME).stat().st_size
    return (case["file"], case["bit"], case["place"]) == (MANIFEST_NAME, None, size - 1)


def hit_sample(data: Any, case: dict[str, Any]) -> int:
    """Number of the sample whose image has the flipped bit."""
    record = next(record for record in data.records if record.file == case["file"])
    ends = accumulate(len(sample.encoded) for sample in data.samples)
    before = sum(earlier.data_bytes for earlier in data.records[: data.records.index(record)])
    place = before + case["place"] - record.data_offset
    return next(number for number, end in enumerate(ends) if place < end)
