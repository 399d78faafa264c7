"""When a rank sends its gradients and how it waits, with a Horovod that only notes what it is asked."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from hvdyolo.distributed import horovod_communicator
from hvdyolo.distributed.gradient_buckets import bucket_gradients
from hvdyolo.distributed.horovod_communicator import HorovodGradients


class NotingHorovod:
    """Two ranks, of which the other sends the same, after ``looks`` looks at each sum."""

    Sum = "sum"

    def __init__(self, looks: int = 0) -> None:
        self.looks = looks
        self.calls: list[str] = []
        self.sent: list[Tensor] = []

    def size(self) -> int:
        return 2

    def allreduce_async_(self, tensor: Tensor, name: str, op: str) -> int:
        assert op == self.Sum
        self.calls.append(f"send {name}")
        self.sent.append(tensor)
        return len(self.sent) - 1

    def poll(self, handle: int) -> bool:
        self.calls.append(f"poll {handle}")
        return self.calls.count(f"poll {handle}") > self.looks

    def synchronize(self, handle: int) -> Tensor:
        self.calls.append(f"synchronize {handle}")
        return self.sent[handle].mul_(2)


@pytest.fixture(autouse=True)
def one_layer_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(bucket_gradients, most_bytes=12)
    monkeypatch.setattr(horovod_communicator, "bucket_gradients", small)


@pytest.fixture
def model() -> nn.Sequential:
    """Two layers of two weights and a bias."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    model[1].requires_grad_(False)
    return model


def reduction(horovod: NotingHorovod, model: nn.Module) -> HorovodGradients:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return HorovodGradients(horovod, torch.optim.SGD(learned, lr=1.0), model)


def learn(model: nn.Module) -> None:
    model(torch.ones(1, 2)).sum().backward()


def test_a_bucket_is_sent_in_the_last_pass_before_earlier_layers_have_their_gradients(model) -> None:
    horovod = NotingHorovod()
    gradients = reduction(horovod, model)
    model[0].weight.register_hook(lambda _: horovod.calls.append("first layer"))
    gradients.begin(2)
    learn(model)
    assert horovod.calls == ["first layer"]
    learn(model)
    assert horovod.calls[1:] == ["send gradients 0", "first layer", "send gradients 1"]
    expected = [2 * parameter.grad.clone() for parameter in (*model[0].parameters(), *model[2].parameters())]
    gradients.wait()
    assert horovod.calls[4:] == ["poll 0", "poll 1", "synchronize 0", "synchronize 1"]
    found = [parameter.grad for parameter in (*model[0].parameters(), *model[2].parameters())]
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_no_node_of_the_graph_is_held(model) -> None:
    """A recording of CUDA graphs would refuse to touch one that was made before it, on another stream."""
    reduction(NotingHorovod(), model)

    def node() -> Node:
        return torch.autograd.graph.get_gradient_edge(model[0].weight).node

    node().metadata["seen"] = True
    assert "seen" not in node().metadata
    held = node()
    held.metadata["seen"] = True
    assert "seen" in node().metadata, "this would show nothing"


def test_it_sleeps_between_looks_until_all_sums_are_there(model, monkeypatch) -> None:
    horovod = NotingHorovod(looks=2)
    monkeypatch.setattr(horovod_communicator.time, "sleep", lambda seconds: horovod.calls.append("sleep"))
    gradients = reduction(horovod, model)
    gradients.begin(1)
    learn(model)
    del horovod.calls[:]
    gradients.wait()
    look = ["poll {0}", "sleep", "poll {0}", "sleep", "poll {0}"]
    looks = [call.format(handle) for handle in (0, 1) for call in look]
    assert horovod.calls == [*looks, "synchronize 0", "synchronize 1"]


def test_what_took_no_part_in_the_loss_is_sent_before_it_waits(model) -> None:
    horovod = NotingHorovod()
    gradients = reduction(horovod, model)
    for _ in range(2):
        gradients.begin(1)
        model[0](torch.ones(1, 2)).sum().backward()
        assert horovod.calls == ["send gradients 1"]
        gradients.wait()
        assert horovod.calls[1:3] == ["send gradients 0", "poll 0"]
        assert [p.grad.tolist() for p in model[2].parameters()] == [[[0.0]], [0.0]]
        assert [p.grad.tolist() for p in model[0].parameters()] == [[[2.0, 2.0]], [2.0]]
        gradients.zero_grad()
        del horovod.calls[:]
        horovod.sent.clear()
