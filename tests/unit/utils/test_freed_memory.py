"""Whether the C library keeps what is freed, seen in a process of its own: it is for good."""

import os
import platform
import subprocess
import sys

import pytest

from hvdyolo.utils.freed_memory import keep_freed_memory

BLOCK_MEBIBYTES = 64  # more than the C library takes from its heap by itself

PROGRAM = f"""
import resource
import sys
from pathlib import Path

from hvdyolo.utils.freed_memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

if sys.argv[1] == "keep":
    assert keep_freed_memory({{}})
elif sys.argv[1] == "some":
    assert keep_freed_memory({{}}, at_most={BLOCK_MEBIBYTES} << 20)
before = resident()
blocks = [bytearray(b"x" * 1024) * (int(size) << 10) for size in sys.argv[2:]]
held = resident()
del blocks
print(held - before, resident() - before)
"""


def residence(word: str, *mebibytes: int) -> tuple[int, int]:
    """Mebibytes that blocks add to a process, while they are held and after they are freed."""
    command = [sys.executable, "-c", PROGRAM, word, *map(str, mebibytes)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    held, left = map(int, printed.split())
    return held, left


adjustable = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ),
    reason="another C library, or adjusted already",
)


@adjustable
def test_a_freed_block_stays_only_where_that_was_asked_for() -> None:
    held, left = residence("keep", BLOCK_MEBIBYTES)
    assert held >= BLOCK_MEBIBYTES
    assert left >= BLOCK_MEBIBYTES
    held, left = residence("not", BLOCK_MEBIBYTES)
    assert held >= BLOCK_MEBIBYTES
    assert left < BLOCK_MEBIBYTES // 2


@adjustable
def test_of_what_is_freed_some_can_stay() -> None:
    usual = [4] * 8
    held, left = residence("some", *usual)
    assert held >= 32
    assert left >= 32
    _, left = residence("not", *usual)
    assert left < 16
    _, left = residence("some", BLOCK_MEBIBYTES)
    assert left < 16


@pytest.mark.parametrize(
    "environment", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000"}]
)
def test_what_the_user_has_adjusted_stands(environment: dict[str, str]) -> None:
    assert not keep_freed_memory(environment)
