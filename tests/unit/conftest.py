"""A network that several tests build."""

from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A description with the modules of the published networks, few and narrow; strides 8 and 16."""
    description = {
        "nc": 3,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
        "backbone": [
            [-1, 1, "Conv", [8, 6, 2, 2]],
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "C3", [8]],
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "SPPF", [8, 5]],
        ],
        "head": [
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 3], 1, "Concat", [1]],
            [-1, 1, "C3", [8, False]],
            [[8, 5], 1, "Detect", ["nc", "anchors"]],
        ],
    }
    path = tmp_path_factory.mktemp("description") / "small.yaml"
    path.write_text(yaml.safe_dump(description))
    return path
