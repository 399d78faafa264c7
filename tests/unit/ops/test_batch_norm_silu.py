"""Batch norm and SiLU in one against torch's two in double precision."""

import copy
import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import silu

from hvdyolo.models.blocks import Conv
from hvdyolo.ops import batch_norm_silu as module
from hvdyolo.ops.batch_norm_silu import batch_norm_silu, can_fuse, compiled_functions
from hvdyolo.ops.compiled import compiled

PIECE = 32768  # values, in the C file


def activation(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


def norm_of(channels: int, seed: int = 0) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
        norm.running_mean.copy_(torch.randn(channels, generator=generator))
        norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    return norm


def exact(x: Tensor, norm: nn.BatchNorm2d, gradient: Tensor) -> dict[str, Tensor]:
    """What torch gets in double precision; ``norm`` stays as it is."""
    norm, x = copy.deepcopy(norm).double(), x.detach().double().requires_grad_()
    return results(silu(norm(x)), x, norm, gradient.double())


def results(y: Tensor, x: Tensor, norm: nn.BatchNorm2d, gradient: Tensor) -> dict[str, Tensor]:
    y.backward(gradient)
    found = {
        "y": y.detach(),
        "x gradient": x.grad,
        "weight gradient": norm.weight.grad,
        "bias gradient": norm.bias.grad,
        "running mean": norm.running_mean,
        "running variance": norm.running_var,
    }
    return {name: value for name, value in found.items() if value is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Differences are at most this part of the greatest value."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        greatest = expected[name].abs().max().item()
        difference = (value.double() - expected[name]).abs().max().item()
        assert difference <= tolerance * max(greatest, 1e-3), name


def test_the_environment_has_compiled_them() -> None:
    # Everything below would be about torch's own otherwise.
    found = compiled("batch_norm_silu")
    assert found is not None
    assert found.processor == torch.backends.cpu.get_cpu_capability().lower()
    assert compiled_functions() is not None


@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 3),
    channels=st.one_of(st.integers(1, 300), st.sampled_from([16, 32, 64, 128, 512, 1024, 1280])),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    offset=st.floats(-20, 20),
    size=st.floats(0.01, 5),
    seed=st.integers(0, 2**31),
)
def test_torch_in_double_precision_gets_the_same(
    images: int, channels: int, height: int, width: int, offset: float, size: float, seed: int
) -> None:
    x = (activation(images, channels, height, width, seed=seed) * size + offset).requires_grad_()
    norm, gradient = norm_of(channels, seed), activation(images, channels, height, width, seed=seed + 1)
    if not can_fuse(norm, x):
        # A single value a channel; or a layout that is both, which torch calls the other one.
        assert images * height * width == 1 or not x.is_contiguous(memory_format=torch.channels_last)
        return
    expected = exact(x, norm, gradient)
    tolerance = 3e-6 * (1 + abs(offset) / size)  # what single precision leaves of a difference
    found = results(batch_norm_silu(x, norm), x, norm, gradient)
    # Its three terms may cancel, of two values a channel almost all.
    of_x, expected_of_x = found.pop("x gradient"), expected.pop("x gradient")
    terms = (norm.weight.abs() / x.detach().var((0, 2, 3), correction=0).add(norm.eps).sqrt()).max() * 10
    assert (of_x - expected_of_x).abs().max() <= tolerance * terms
    assert_near(found, expected, tolerance)


@pytest.mark.parametrize("rows", [PIECE // 16 - 1, PIECE // 16, PIECE // 16 + 1, 5 * PIECE // 16 + 7])
def test_sums_over_several_pieces_lose_and_repeat_nothing(rows: int) -> None:
    x, gradient, norm = (
        activation(1, 16, 1, rows).requires_grad_(),
        activation(1, 16, 1, rows, seed=1),
        norm_of(16),
    )
    expected = exact(x, norm, gradient)
    assert_near(results(batch_norm_silu(x, norm), x, norm, gradient), expected, 2e-6)


def test_values_far_from_zero_keep_their_variance() -> None:
    # Squares of 1000 have 0.06 between two of their values in single precision: the variance would be lost.
    x, gradient, norm = activation(4, 8, 40, 40) + 1000, activation(4, 8, 40, 40, seed=1), norm_of(8)
    expected = exact(x, norm, gradient)
    x.requires_grad_()
    found = results(batch_norm_silu(x, norm), x, norm, gradient)
    assert_near({"v": found["running variance"]}, {"v": expected["running variance"]}, 1e-6)
    assert_near(found, expected, 1e-3)


def test_more_exact_than_torch() -> None:
    x, gradient = activation(8, 16, 160, 160) * 2 + 3, activation(8, 16, 160, 160, seed=1)
    expected = exact(x, norm_of(16), gradient)
    own, torchs = (
        results(function(values, norm), values, norm, gradient)
        for function in (batch_norm_silu, lambda values, norm: silu(norm(values)))
        for values, norm in [(x.clone().requires_grad_(), norm_of(16))]
    )
    for name, value in expected.items():
        error = (own[name].double() - value).abs().max()
        assert error <= (torchs[name].double() - value).abs().max(), name


def test_bfloat16() -> None:
    x = activation(2, 24, 33, 31).bfloat16().requires_grad_()
    gradient, norm = activation(2, 24, 33, 31, seed=1).bfloat16(), norm_of(24)
    expected = exact(x, norm, gradient)
    y = batch_norm_silu(x, norm)
    assert y.dtype == torch.bfloat16
    found = results(y, x, norm, gradient)
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    # Eight bits: half of the last is 1 in 512. The gradient of x is rounded twice.
    rounded = {name: found.pop(name) for name in ("y", "x gradient")}
    assert_near(rounded, {name: expected.pop(name) for name in rounded}, 1 / 256)
    assert_near(found, expected, 1e-5)


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    # From 100 on silu(z) is z; from 256 on neighbours are 2 apart.
    values = torch.tensor([100.0, 256.0, 257.0, 257.01, 258.99, 259.0, 261.0, 1e30])
    y, _ = of_constants(values, torch.bfloat16)
    assert torch.equal(y, values.bfloat16())
    assert y[:7].tolist() == [100, 256, 256, 258, 258, 260, 260]


@pytest.mark.parametrize("first", [0, 5, 16])
def test_the_gradient_may_be_some_channels_of_a_larger_one(first: int) -> None:
    # So it is behind a concatenation. Everything outside is poison.
    x, whole, norm = (
        activation(2, 16, 9, 7).requires_grad_(),
        torch.full((2, 32, 9, 7), torch.nan),
        norm_of(16),
    )
    whole = whole.contiguous(memory_format=torch.channels_last)
    part = whole[:, first : first + 16]
    part.copy_(activation(2, 16, 9, 7, seed=1))
    expected = exact(x, norm, part)
    assert not part.is_contiguous(memory_format=torch.channels_last)
    assert_near(results(batch_norm_silu(x, norm), x, norm, part), expected, 3e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda gradient: gradient.contiguous(),
        lambda gradient: gradient[:1, :1, :1, :1].expand_as(gradient),
        lambda gradient: gradient.flip(3)[..., ::1],
        lambda gradient: torch.cat([gradient, gradient], 3)[..., ::2],
        lambda gradient: torch.cat([gradient, gradient], 2)[:, :, ::2],
        lambda gradient: torch.cat([gradient, gradient], 0)[::2],
    ],
)
def test_gradients_of_any_layout(change) -> None:
    x, norm = activation(2, 16, 9, 7).requires_grad_(), norm_of(16)
    gradient = change(activation(2, 16, 9, 7, seed=1))
    expected = exact(x, norm, gradient)
    assert_near(results(batch_norm_silu(x, norm), x, norm, gradient), expected, 3e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            x, gradient, norm = (
                activation(3, 40, 61, 53).requires_grad_(),
                activation(3, 40, 61, 53, seed=1),
                norm_of(40),
            )
            found.append(results(batch_norm_silu(x, norm), x, norm, gradient))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, found[0][name]) for name, value in other.items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so(value: float, dtype: torch.dtype) -> None:
    # A training takes notice by its loss and gradients.
    x, norm = activation(2, 16, 5, 5).to(dtype), norm_of(16)
    x[1, 3, 2, 2] = value
    x.requires_grad_()
    y = batch_norm_silu(x, norm)
    y.float().sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.running_var is not None
    for tensor in (y[:, 3], x.grad[:, 3], norm.weight.grad[3], norm.running_var[3]):
        assert not tensor.isfinite().any()
    others = [channel for channel in range(16) if channel != 3]
    for tensor in (y[:, others], x.grad[:, others], norm.weight.grad[others], norm.running_var[others]):
        assert tensor.isfinite().all()


def test_sigmoid_and_its_slope_are_exact_to_a_few_roundings_everywhere() -> None:
    values = torch.cat([torch.linspace(-86, 100, 20001), torch.tensor([0.0, -0.0, 1e-30, 5e4, 3e38])])
    y, slope = of_constants(values, torch.float32)
    z = values.double().requires_grad_()
    expected = silu(z)
    (expected_slope,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(y.double(), expected.detach(), rtol=5e-7, atol=0)
    # The slope goes through zero at -1.28, where its terms have cancelled.
    torch.testing.assert_close(slope.double(), expected_slope, rtol=2e-6, atol=2e-7)
    # exp would leave the range of single precision there.
    y, slope = of_constants(torch.tensor([-88.0, -200.0, -1e6]), torch.float32)
    assert (y.abs() < 1e-31).all()
    assert (slope.abs() < 1e-31).all()


def of_constants(z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """silu(z) and its slope: by norms whose weight is zero, so that only the bias is left."""
    channels = len(z)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.copy_(z)
    y = batch_norm_silu(activation(1, channels, 1, 2).to(dtype), norm)
    # One of the two gradients, for the bias has their sum.
    y.backward(torch.tensor([1.0, 0.0]).to(dtype).expand_as(y))
    assert torch.equal(y[..., 0], y[..., 1])
    assert norm.bias.grad is not None
    return y[0, :, 0, 0].detach(), norm.bias.grad


def test_a_batch_is_counted() -> None:
    norm = norm_of(16)
    batch_norm_silu(activation(2, 16, 5, 5), norm)
    assert norm.num_batches_tracked == 1


def test_what_torch_has_to_do() -> None:
    x, norm = activation(2, 16, 5, 5), norm_of(16)
    assert can_fuse(norm, x)
    assert can_fuse(norm, x.bfloat16())
    assert not can_fuse(norm, x.contiguous())
    assert not can_fuse(copy.deepcopy(norm).double(), x.double())
    assert not can_fuse(norm, x.half())
    assert not can_fuse(copy.deepcopy(norm).bfloat16(), x.bfloat16())
    assert not can_fuse(copy.deepcopy(norm).eval(), x)
    assert not can_fuse(norm, activation(1, 16, 1, 1))
    assert not can_fuse(nn.BatchNorm2d(16, affine=False), x)
    assert not can_fuse(nn.BatchNorm2d(16, track_running_stats=False), x)
    assert not can_fuse(nn.BatchNorm2d(16, momentum=None), x)
    assert not can_fuse(nn.SyncBatchNorm(16), x)
    assert not can_fuse(nn.Identity(), x)
    assert not can_fuse(norm_of(8), x)
    mixed = norm_of(16)
    mixed.running_var = mixed.running_var.double()
    assert not can_fuse(mixed, x)


def test_without_compiled_functions_a_convolution_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = activation(2, 3, 20, 20).requires_grad_()
    own = Conv(3, 16, 3)
    torchs = copy.deepcopy(own)
    calls = []
    real = module.compiled_functions()
    assert real is not None
    monkeypatch.setattr(module, "compiled_functions", lambda: calls.append(1) or real)
    y = own(x)
    y.sum().backward()
    assert calls
    own_gradient, x.grad = x.grad, None
    monkeypatch.setattr(module, "compiled_functions", lambda: None)
    expected = torchs(x)
    expected.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own_gradient, x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.state_dict(), torchs.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_version_that_can_run_here_gives_the_same(capability: str) -> None:
    """Each in a process of its own, which torch is told to think less of."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    order = ["default", "avx2", "avx512"]
    if here not in order or order.index(capability) > order.index(here):
        pytest.skip(f"this processor has no {capability}")
    script = f"""
import torch
from tests.unit.ops.test_batch_norm_silu import *
assert compiled("batch_norm_silu").processor == {capability!r}
for dtype, tolerance in ((torch.float32, 3e-6), (torch.bfloat16, 1 / 128)):
    x, gradient = (activation(2, 24, 33, 31, seed=seed).to(dtype) for seed in (0, 1))
    x, norm = x.requires_grad_(), norm_of(24)
    expected = exact(x, norm, gradient)
    assert_near(results(batch_norm_silu(x, norm), x, norm, gradient), expected, tolerance)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"ATEN_CPU_CAPABILITY": capability, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_no_memory_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = SimpleNamespace(batch_norm_silu_forward=lambda *_: -1)
    monkeypatch.setattr(module, "compiled_functions", lambda: failing)
    with pytest.raises(MemoryError):
        batch_norm_silu(activation(2, 16, 5, 5), norm_of(16))


def test_a_library_that_does_not_load_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> ctypes.CDLL:
        raise OSError(path)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    caches = (compiled, compiled_functions)
    for cache in caches:
        cache.cache_clear()
    try:
        assert compiled("batch_norm_silu") is None
        assert not can_fuse(norm_of(16), activation(2, 16, 5, 5))
    finally:
        for cache in caches:
            cache.cache_clear()
