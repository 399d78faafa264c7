"""Compiled networks: what is refused, what stays as it was, and that they learn the same."""

import functools
from pathlib import Path

import pytest
import torch
from test_learner import build_learner, take_steps

from hvdyolo.config import TrainConfig
from hvdyolo.engine.compilation import check_compilation, compile_network, record_network
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.models.build import build_model
from hvdyolo.utils.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "several_sizes", "words"),
    [
        (TrainConfig(compile=True), False, ["train.compile", "no-such-compiler", "CXX"]),
        (TrainConfig(cuda_graphs=True), False, ["train.cuda_graphs", "GPU", "cpu"]),
        (TrainConfig(compile=True, sync_batch_norm=True), False, ["train.compile", "train.sync_batch_norm"]),
    ],
)
def test_what_a_host_cannot_do_is_refused(
    settings: TrainConfig, several_sizes: bool, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError) as raised:
        check_compilation(settings, CPU, several_sizes=several_sizes)
    assert all(word in str(raised.value) for word in words)


def test_a_graph_of_one_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="multi_scale"):
        check_compilation(TrainConfig(cuda_graphs=True), torch.device("cuda"), several_sizes=True)
    check_compilation(TrainConfig(cuda_graphs=True), torch.device("cuda"), several_sizes=False)


def test_a_host_with_a_compiler_may_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")  # a program that is everywhere
    check_compilation(TrainConfig(compile=True), CPU, several_sizes=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compilation(TrainConfig(), CPU, several_sizes=True)


def test_a_compiled_network_learns_the_same_under_the_same_names(
    small_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing is torch's; generating code for a processor takes minutes and is left out.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients, states = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model(small_network, 3).train()
        average = MovingAverage(model, 0.5, 1.0)
        traced: list[bool] = []
        model.model[0].register_forward_hook(lambda *_, t=traced: t.append(torch.compiler.is_compiling()))
        if compiled:
            compile_network(model, TrainConfig(compile=True), several_sizes=False)
        sum(level.square().mean() for level in model(images)).backward()
        assert any(traced) is compiled
        average.update(model)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        states.append((model.state_dict(), average.model.state_dict()))
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(states[1], states[0])  # names too


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs are not tried")
@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_recorded_steps_learn_the_same(batches_a_step: int) -> None:
    """Of two batches too, whose gradients come in the same memory of the graphs."""
    device = torch.device("cuda")
    plain, recorded = (build_learner(batches_a_step=batches_a_step) for _ in range(2))
    for learner in (plain, recorded):
        learner.model.to(device)
        learner.average.model.to(device)
        learner.device = device
    recorded.replayed = True
    record_network(recorded.model, images=2, size=64, precision="fp32")
    sizes = [64] * 2 * batches_a_step
    expected, found = take_steps(plain, sizes), take_steps(recorded, sizes)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)
    # Recording leaves no trace in the running statistics.
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(recorded.model.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)
