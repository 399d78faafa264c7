"""The compiled functions that make the same bytes for whatever processor they were compiled."""

import subprocess
import sys

import pytest
import torch

PROCESSORS = ["default", "avx2", "avx512"]
CALLS = {
    "colours": """
from hvdyolo.ops.colours import mirror, scale_colours
scale_colours(image, (1.013, 1.37, 0.81))
mirror(image)
made = [image]
""",
    "bilinear": """
from hvdyolo.ops.bilinear import resize_bilinear
sizes = [(7, 5), (150, 150), (100, 120), (299, 302), (450, 400), (640, 641), (90, 1), (3, 70)]
made = [np.empty((*size, 3), dtype=np.uint8) for size in sizes]
for target in made:
    resize_bilinear(image, target)
""",
}


@pytest.mark.parametrize("name", CALLS)
def test_every_processor_makes_the_same_bytes(name: str) -> None:
    script = f"""
import numpy as np
from hvdyolo.ops.compiled import compiled
image = np.random.default_rng(0).integers(0, 256, (300, 301, 3), dtype=np.uint8)
{CALLS[name]}
print(compiled({name!r}).processor, hash(b"".join(one.tobytes() for one in made)))
"""
    here = torch.backends.cpu.get_cpu_capability().lower()
    assert here in PROCESSORS
    found = {}
    for processor in PROCESSORS[: PROCESSORS.index(here) + 1]:
        environment = {"ATEN_CPU_CAPABILITY": processor, "PYTHONHASHSEED": "0", "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        version, bytes_hash = done.stdout.split()
        found[version] = bytes_hash
    assert list(found) == PROCESSORS[: PROCESSORS.index(here) + 1]
    assert len(set(found.values())) == 1
