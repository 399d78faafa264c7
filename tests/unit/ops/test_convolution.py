"""The compiled gradient of a convolution's weights against torch's in double precision."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv2d

from hvdyolo.models.blocks import Conv
from hvdyolo.ops import convolution as module
from hvdyolo.ops.compiled import compiled
from hvdyolo.ops.convolution import Convolution, compiled_function, weight_gradient

IS_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
needs_avx2 = pytest.mark.skipif(not IS_AVX2, reason="torch's is used on this processor")
PLACES = 128  # in the C file


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Channels last, as a part of a larger tensor that has no numbers around it."""
    surrounded = torch.full((shape[0] + 2, *shape[1:]), torch.nan).contiguous(
        memory_format=torch.channels_last
    )
    surrounded[1:-1] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return surrounded[1:-1]


def exact(x: Tensor, y_gradient: Tensor, stride: int) -> Tensor:
    shape = (y_gradient.shape[1], x.shape[1], 3, 3)
    return nn.grad.conv2d_weight(x.double(), shape, y_gradient.double(), stride, padding=1)


def pair(
    batch: int, channels: int, outputs: int, height: int, width: int, stride: int
) -> tuple[Tensor, Tensor]:
    """Activations, and a gradient of what a convolution makes of them."""
    return (
        normal(batch, channels, height, width),
        normal(batch, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1, seed=1),
    )


def error(found: Tensor, expected: Tensor) -> float:
    """The greatest difference, as a part of the greatest value."""
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@needs_avx2
def test_the_environment_has_compiled_it() -> None:
    # Everything below would be about torch's own otherwise.
    found = compiled("weight_gradient")
    assert found is not None
    assert found.processor == "avx2"


@needs_avx2
@settings(deadline=None, max_examples=80)
@given(
    batch=st.integers(1, 3),
    x_tiles=st.integers(1, 5),
    y_tiles=st.integers(1, 9),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    stride=st.integers(1, 3),
)
def test_torch_in_double_precision_gets_the_same(
    batch: int, x_tiles: int, y_tiles: int, height: int, width: int, stride: int
) -> None:
    x, y_gradient = pair(batch, 8 * x_tiles, 4 * y_tiles, height, width, stride)
    found = weight_gradient(x, y_gradient, stride)
    assert found.is_contiguous()
    assert error(found, exact(x, y_gradient, stride)) < 2e-6


@needs_avx2
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, PLACES - 1, PLACES, PLACES + 1, 2 * PLACES + 3])
@pytest.mark.parametrize("height", [1, 2, PLACES + 2])
def test_blocks_lose_and_repeat_no_place(height: int, width: int, stride: int) -> None:
    x, y_gradient = pair(2, 8, 8, height, width, stride)
    assert error(weight_gradient(x, y_gradient, stride), exact(x, y_gradient, stride)) < 2e-6


@needs_avx2
def test_a_single_value_has_its_place() -> None:
    x, y_gradient = torch.zeros(1, 16, 5, 7), torch.zeros(1, 8, 5, 7)
    x, y_gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, y_gradient))
    x[0, 11, 2, 3], y_gradient[0, 5, 1, 4] = 2.0, 3.0
    expected = torch.zeros(8, 16, 3, 3)
    expected[5, 11, 2 - 1 + 1, 3 - 4 + 1] = 6.0
    assert torch.equal(weight_gradient(x, y_gradient, 1), expected)


@needs_avx2
def test_more_exact_than_torch() -> None:
    x, y_gradient = pair(8, 16, 16, 80, 80, 1)
    expected = exact(x, y_gradient, 1)
    torchs = nn.grad.conv2d_weight(x, (16, 16, 3, 3), y_gradient, 1, padding=1)
    assert error(weight_gradient(x, y_gradient, 1), expected) < error(torchs, expected)


@needs_avx2
def test_the_number_of_threads_changes_no_bit() -> None:
    before = torch.get_num_threads()
    x, y_gradient = pair(3, 24, 20, 21, 17, 1)
    try:
        found = []
        for threads in (1, 2, 3, 7):  # seven have five tiles of outputs to share out
            torch.set_num_threads(threads)
            found.append(weight_gradient(x, y_gradient, 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])


@needs_avx2
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    # A training takes notice by its gradients.
    x, y_gradient = pair(2, 16, 8, 9, 9, 1)
    x[1, 3, 4, 4] = value
    found = weight_gradient(x, y_gradient, 1)
    assert not found[:, 3].isfinite().any()
    assert found[:, [channel for channel in range(16) if channel != 3]].isfinite().all()


def layer(stride: int = 1) -> Convolution:
    return Convolution(16, 32, 3, stride, 1, bias=False)


def can_compute_gradient(convolution: nn.Conv2d, x: Tensor) -> bool:
    return module.can_compute_gradient(convolution, convolution.weight, x)


def gradients(x: Tensor, convolution: Callable[[Tensor], Tensor], weight: Tensor) -> dict[str, Tensor | None]:
    weight.grad = x.grad = None
    y = convolution(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(7)))
    return {"y": y.detach(), "x": x.grad, "weight": weight.grad}


@needs_avx2
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_torchs_in_all_else(stride: int) -> None:
    convolution = layer(stride)
    x = normal(2, 16, 20, 24).detach().requires_grad_()
    assert can_compute_gradient(convolution, x)
    own = gradients(x, convolution, convolution.weight)
    torchs = gradients(
        x, lambda x: conv2d(x, convolution.weight, stride=stride, padding=1), convolution.weight
    )
    assert torch.equal(own["y"], torchs["y"])
    assert torch.equal(own["x"], torchs["x"])
    torch.testing.assert_close(own["weight"], torchs["weight"], rtol=1e-5, atol=1e-4)


@needs_avx2
@pytest.mark.parametrize(
    "change",
    [
        lambda gradient: gradient.contiguous(),
        lambda gradient: gradient[:1, :1, :1, :1].expand_as(gradient),
        lambda gradient: torch.cat([gradient, gradient], 1)[:, 3:35],
        lambda gradient: torch.cat([gradient, gradient], 3)[..., ::2],
    ],
)  # fmt: skip
def test_gradients_of_any_layout(change: Callable[[Tensor], Tensor]) -> None:
    x, gradient, convolution = normal(2, 16, 9, 7), change(normal(2, 32, 9, 7, seed=1)), layer()
    convolution(x).backward(gradient)
    assert convolution.weight.grad is not None
    assert error(convolution.weight.grad, exact(x, gradient, 1)) < 2e-6


def test_no_gradient_of_an_input_that_needs_none() -> None:
    x, convolution = normal(2, 16, 9, 7), layer()
    convolution(x).sum().backward()
    assert x.grad is None
    assert convolution.weight.grad is not None


@needs_avx2
def test_weights_decide_not_what_the_layer_once_was() -> None:
    x, convolution = normal(2, 16, 9, 7), layer()
    convolution.weight = nn.Parameter(convolution.weight[:24].detach().clone())
    assert can_compute_gradient(convolution, x)
    assert not can_compute_gradient(convolution, normal(2, 8, 9, 7))
    y = convolution(x)
    y.sum().backward()
    assert convolution.weight.grad is not None
    assert error(convolution.weight.grad, exact(x, torch.ones_like(y), 1)) < 2e-6


def test_hooks_on_saved_tensors_may_change_their_layout() -> None:
    x, block = normal(2, 16, 9, 7), Conv(16, 32, 3)
    expected = copy.deepcopy(block)
    expected(x).square().sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(Tensor.contiguous, lambda x: x):
        y = block(x)
    y.square().sum().backward()
    for found, other in zip(block.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, other.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_network_can_be_traced(tmp_path: Path) -> None:
    block, x = Conv(16, 32, 3).eval(), normal(2, 16, 9, 7)
    traced = torch.jit.trace(block, x, check_trace=False)
    traced.save(tmp_path / "block.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "block.pt")(x), block(x))


def test_shapes_alone_can_be_computed() -> None:
    with FakeTensorMode():
        block = Conv(16, 32, 3)
        x = torch.empty(2, 16, 9, 7).contiguous(memory_format=torch.channels_last)
        block(x).sum().backward()
        assert block.conv.weight.grad is not None
        assert block.conv.weight.grad.shape == (32, 16, 3, 3)


@needs_avx2
def test_what_torch_has_to_do() -> None:
    x, convolution = normal(2, 16, 20, 20), layer()
    assert can_compute_gradient(convolution, x)
    assert can_compute_gradient(layer(2), x)
    assert not can_compute_gradient(convolution, x.contiguous())
    assert not can_compute_gradient(copy.deepcopy(convolution).double(), x.double())
    assert not can_compute_gradient(copy.deepcopy(convolution).bfloat16(), x.bfloat16())
    assert not can_compute_gradient(copy.deepcopy(convolution).requires_grad_(False), x)
    assert not can_compute_gradient(convolution, x[0])
    for others in (
        Convolution(16, 32, 1, bias=False),
        Convolution(16, 32, 5, padding=2, bias=False),
        Convolution(16, 32, 3, bias=False),
        Convolution(16, 32, 3, (1, 2), 1, bias=False),
        Convolution(16, 32, 3, padding=1),
        Convolution(16, 32, 3, padding=1, groups=2, bias=False),
        Convolution(16, 32, 3, padding=1, dilation=2, bias=False),
        Convolution(16, 32, 3, padding=1, padding_mode="reflect", bias=False),
        Convolution(12, 32, 3, padding=1, bias=False),
        Convolution(16, 30, 3, padding=1, bias=False),
    ):
        assert not can_compute_gradient(others, normal(2, others.in_channels, 20, 20))
    assert not can_compute_gradient(copy.deepcopy(convolution).eval(), x)
    assert not can_compute_gradient(convolution, x.as_subclass(nn.Parameter))
    with torch.no_grad():
        assert not can_compute_gradient(convolution, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_compute_gradient(convolution, x)
        assert convolution(x).dtype == torch.bfloat16
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)  # 32 outputs are eight tiles
        assert not can_compute_gradient(convolution, x)
    finally:
        torch.set_num_threads(before)


def test_without_the_compiled_function_a_block_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(2, 16, 20, 20)
    own = Conv(16, 32, 3)
    torchs = copy.deepcopy(own)
    calls = []
    real = module.compiled_function()
    if real is not None:
        monkeypatch.setattr(module, "compiled_function", lambda: lambda *all: calls.append(1) or real(*all))
    y = own(x)
    y.sum().backward()
    assert len(calls) == IS_AVX2
    monkeypatch.setattr(module, "compiled_function", lambda: None)
    expected = torchs(x)
    expected.sum().backward()
    assert torch.equal(y, expected)
    for found, other in zip(own.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(found.grad, other.grad, rtol=1e-4, atol=1e-4)


@needs_avx2
def test_no_memory_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compiled_function", lambda: lambda *_: 1)
    x, y_gradient = pair(1, 8, 8, 5, 5, 1)
    with pytest.raises(MemoryError):
        weight_gradient(x, y_gradient, 1)


def test_with_avx512_torchs_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    compiled_function.cache_clear()
    try:
        assert compiled_function() is None
    finally:
        compiled_function.cache_clear()
