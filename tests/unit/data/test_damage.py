"""1,000 damages to a packed dataset: none is used, none crashes or hangs, each is named."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import damage_study
import pytest

from hvdyolo.data.format import MANIFEST_NAME

Cases = list[dict[str, Any]]


@pytest.fixture
def study(packed: Callable[..., Any]) -> tuple[Any, Cases]:
    """The dataset, and what became of it in each case."""
    data = packed(shards=2, each=6)
    command = [sys.executable, "-X", "faulthandler", damage_study.__file__, data.root]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return data, list(map(json.loads, ended.stdout.splitlines()))


def test_no_damage_is_used_and_none_crashes_or_hangs(study: tuple[Any, Cases]) -> None:
    data, cases = study
    assert len(cases) == 1000
    assert Counter(case["region"] for case in cases) == {**damage_study.FLIPS, "cut": 75}
    for case in cases:
        assert not case["wrong"], case
        if case["region"] == "data":
            # Known only when the image is read, and then of this image alone.
            assert (case["refused"], case["unreadable"]) == (False, [hit_sample(data, case)]), case
        elif case["file"] == MANIFEST_NAME and not case["refused"]:
            # The manifest's digest is of what it says: a cut that takes the newline at its end takes nothing.
            assert case["bit"] is None, case
            assert case["place"] == (data.root / MANIFEST_NAME).stat().st_size - 1, case
            assert not case["unreadable"], case
        else:
            assert case["refused"], case
            assert not case["hdf5"], f"the HDF5 library has seen a damaged file: {case}"


def hit_sample(data: Any, case: dict[str, Any]) -> int:
    """Number of the sample whose image has the flipped bit."""
    record = next(record for record in data.records if record.file == case["file"])
    ends = accumulate(len(sample.encoded) for sample in data.samples)
    before = sum(earlier.data_bytes for earlier in data.records[: data.records.index(record)])
    place = before + case["place"] - record.data_offset
    return next(number for number, end in enumerate(ends) if place < end)
