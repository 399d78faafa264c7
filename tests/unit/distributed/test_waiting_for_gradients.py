"""How a rank waits for the others' gradients, with a Horovod that only notes what it is asked."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hvdyolo.distributed import horovod_communicator
from hvdyolo.distributed.horovod_communicator import HorovodGradients


class NotingHorovod:
    """Two ranks, of which the other takes ``looks`` looks at each of this one's sums."""

    Sum = "sum"

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.calls: list[str] = []
        self.optimizer = SimpleNamespace(
            _handles={}, _requires_update=set(), synchronize=lambda: self.calls.append("synchronize")
        )

    def size(self) -> int:
        return 2

    def DistributedOptimizer(self, optimizer, named_parameters, op):  # noqa: N802 - Horovod's name
        self.optimizer._requires_update = {parameter for _, parameter in named_parameters}
        return self.optimizer

    def poll(self, handle: int) -> bool:
        self.calls.append(f"poll {handle}")
        return self.calls.count(f"poll {handle}") > self.looks


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(2, 1)


def wait(horovod: NotingHorovod, model: nn.Module, handles: dict[nn.Parameter, int | None]) -> list[str]:
    gradients = HorovodGradients(horovod, torch.optim.SGD(model.parameters(), lr=1.0), model)
    horovod.optimizer._handles = {parameter: (handle, None) for parameter, handle in handles.items()}
    gradients.wait()
    return horovod.calls


def test_it_sleeps_between_looks_until_all_sums_are_there(model, monkeypatch) -> None:
    horovod = NotingHorovod(looks=2)
    monkeypatch.setattr(horovod_communicator.time, "sleep", lambda seconds: horovod.calls.append("sleep"))
    calls = wait(horovod, model, {model.weight: 7, model.bias: 8})
    look = ["poll {0}", "sleep", "poll {0}", "sleep", "poll {0}"]
    assert calls == [*(call.format(handle) for handle in (7, 8) for call in look), "synchronize"]


def test_what_this_rank_has_not_sent_is_sent_before_it_waits(model) -> None:
    assert wait(NotingHorovod(looks=1), model, {model.weight: 7}) == ["synchronize"]
    assert wait(NotingHorovod(looks=1), model, {model.weight: 7, model.bias: None}) == ["synchronize"]
