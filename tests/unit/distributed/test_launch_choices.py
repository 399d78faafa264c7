"""What is chosen for Horovod before it starts."""

import pytest
import torch

from hvdyolo.config import DistributedConfig
from hvdyolo.distributed import launch


@pytest.mark.parametrize(
    ("gpu", "many_small_sums", "chosen"), [(False, False, "50"), (False, True, "1"), (True, True, None)]
)
def test_cpus_look_for_work_rarely_unless_each_step_waits_for_many_sums(
    monkeypatch, gpu: bool, many_small_sums: bool, chosen: str | None
) -> None:
    monkeypatch.delenv("HOROVOD_CYCLE_TIME", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert launch._choose(DistributedConfig(), many_small_sums).get("HOROVOD_CYCLE_TIME") == chosen
    named = launch._choose(DistributedConfig(cycle_time=7), many_small_sums)
    assert named["HOROVOD_CYCLE_TIME"] == "7"
