"""Batch norm over ranks, as far as one process can see it; tests/parallel compares it over real ranks."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.sync_batch_norm import SyncBatchNorm2d, convert_sync_batch_norm
from hvdyolo.distributed.world import World
from hvdyolo.models.blocks import NORM_EPS, NORM_MOMENTUM, Conv
from hvdyolo.utils.errors import UsageError

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


class Twins(SingleProcess):
    """Two ranks that always have the same images."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(rank=0, size=2, local_rank=0, local_size=2, host="here")
        self.names: list[str] = []

    def sum(self, name: str, tensor: Tensor) -> Tensor:
        self.names.append(name)
        return 2 * tensor


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = nn.BatchNorm2d(5, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    with torch.no_grad():
        made.weight.uniform_(0.5, 2)
        made.bias.normal_()
    return made


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_twins_get_what_one_process_gets_from_both(
    dtype: torch.dtype, tolerance: float, device: str, layout: torch.memory_format
) -> None:
    # In double precision on a processor, which no library's choice of sums touches.
    plain, twins = norm().double(), Twins()
    synchronised = SyncBatchNorm2d(norm().to(device), "norm", twins.sum)
    # Means far from 0: sums of squares would lose the variance in half precision.
    x = (torch.randn(3, 5, 4, 6) * 3 + 40).to(device, dtype).to(memory_format=layout)
    gradient = torch.randn(3, 5, 4, 6).to(device, dtype)
    both = torch.cat([x, x]).cpu().double().requires_grad_()
    own = x.clone().requires_grad_()
    expected, found = plain(both), synchronised(own)
    expected.backward(torch.cat([gradient, gradient]).cpu().double())
    found.backward(gradient)
    assert found.dtype == own.grad.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False, "check_device": False}
    torch.testing.assert_close(found, expected[:3], **close)
    torch.testing.assert_close(own.grad, both.grad[:3], **close)
    # Of weights each rank has its share, for the reduction of gradients to add up.
    torch.testing.assert_close(2 * synchronised.weight.grad, plain.weight.grad, **close)
    torch.testing.assert_close(2 * synchronised.bias.grad, plain.bias.grad, **close)
    few = {**close, "rtol": 1e-6, "atol": 1e-6}
    for name, value in plain.named_buffers():
        torch.testing.assert_close(synchronised.get_buffer(name), value, **few)
    assert twins.names == ["norm: moments", "norm: gradients"]


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"momentum": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_a_norm_is_set_to_twins_get_what_one_process_gets(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(5, **options)).to(dtype)
    twins = copy.deepcopy(plain)
    assert convert_sync_batch_norm(twins, Twins()) == 1
    for _ in range(3):
        x = torch.randn(3, 5, 4, 6, dtype=dtype) * 3 + 4
        both, own = torch.cat([x, x]).requires_grad_(), x.clone().requires_grad_()
        expected, found = plain(both), twins(own)
        (expected**3).sum().backward()
        (found**3).sum().backward()
        torch.testing.assert_close(found, expected[:3])
        torch.testing.assert_close(own.grad, both.grad[:3], rtol=1e-4, atol=1e-4)
    assert twins.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.named_buffers():
        torch.testing.assert_close(twins.get_buffer(name), value)
    x = torch.randn(3, 5, 4, 6, dtype=dtype)
    torch.testing.assert_close(twins.eval()(x), plain.eval()(x))


class Instrumented(nn.BatchNorm2d):
    """Which might do anything."""


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4))), "1.0 is a BatchNorm1d"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm3d(4)), "1 is a BatchNorm3d"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.SyncBatchNorm(4)), "1 is a SyncBatchNorm"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.LazyBatchNorm2d()), "1 is a LazyBatchNorm2d"),
        (nn.Sequential(nn.BatchNorm2d(4), Instrumented(4)), "1 is a Instrumented"),
        (nn.BatchNorm2d(4), "The model is a BatchNorm2d"),
    ],
    ids=["1d", "3d", "torch's own", "lazy", "derived", "alone"],
)
def test_norms_of_other_kinds_are_named_and_nothing_is_converted(model: nn.Module, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says) + ", and only"):
        convert_sync_batch_norm(model, Twins())
    assert not any(isinstance(module, SyncBatchNorm2d) for module in model.modules())
    assert convert_sync_batch_norm(model, SingleProcess()) == 0


def test_a_norm_in_two_places_is_converted_in_both() -> None:
    shared, twins = nn.BatchNorm2d(3), Twins()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    convert_sync_batch_norm(model, twins)
    model(torch.rand(2, 3, 4, 4))
    assert twins.names == ["0: moments", "2: moments"]
    assert len(list(model.parameters())) == 2


def test_all_norms_are_converted_and_parameters_and_names_stay() -> None:
    model = nn.Sequential(Conv(3, 4), nn.Sequential(Conv(4, 4)))
    keys, parameters = list(model.state_dict()), list(model.parameters())
    twins = Twins()
    assert convert_sync_batch_norm(model, twins) == 2
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    assert twins.names == [
        "0.bn: moments", "1.0.bn: moments", "1.0.bn: gradients", "0.bn: gradients",
    ]  # fmt: skip


def test_frozen_norms_and_evaluation_ask_nobody() -> None:
    model, twins = nn.Sequential(Conv(3, 4)), Twins()
    expected = copy.deepcopy(model).eval()
    convert_sync_batch_norm(model, twins)
    x = torch.rand(2, 3, 4, 4)
    assert model.eval()(x).equal(expected(x))
    assert twins.names == []


def test_one_process_keeps_its_norms() -> None:
    model = nn.Sequential(Conv(3, 4))
    assert convert_sync_batch_norm(model, SingleProcess()) == 0
    assert type(model[0].bn) is nn.BatchNorm2d
