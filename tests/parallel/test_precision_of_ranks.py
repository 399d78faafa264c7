"""Half precision on several ranks: in the network, on the way between ranks, and what goes wrong in it."""

import pytest
import torch
from rehearsal import Course, Rehearsal, assert_close, narrow_model
from torch import nn
from torch.amp.grad_scaler import GradScaler

from hvdyolo.engine import learner as learner_module
from hvdyolo.models.build import DetectionModel


@pytest.fixture
def start(tmp_path) -> DetectionModel:
    return narrow_model(tmp_path)


def small_scale() -> GradScaler:
    """One at which the large gradients of so small a network stay in range."""
    return GradScaler("cpu", init_scale=2.0**8)


def spoil_losses(monkeypatch, comm, chosen) -> None:
    """Make the loss of the last rank no number in the steps whose numbers ``chosen`` accepts."""
    loss, calls = learner_module.detection_loss, iter(range(10**6))

    def spoiled(levels, *rest):
        bad = chosen(next(calls)) and comm.world.rank == comm.world.size - 1
        return loss([level * float("nan") for level in levels] if bad else levels, *rest)

    monkeypatch.setattr(learner_module, "detection_loss", spoiled)


def same_everywhere(comm, rehearsal: Rehearsal) -> None:
    comm.check_equal(rehearsal.weights())
    states = comm.gather_objects("scaler", rehearsal.learner.scaler.state_dict())
    assert states == [states[0]] * comm.world.size


def freeze_norms(model: DetectionModel) -> None:
    """With statistics that fit: those of a few images at a time would make much of rounding."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(8, 3, 64, 64))
    model.eval()
    model.model[-1].train()


def test_fp16_scales_the_loss_and_learns_what_fp32_learns(comm, start) -> None:
    freeze_norms(start)
    course = Course(images=4, passes=2, sizes=(64,))
    whole, half = Rehearsal(comm, start, course), Rehearsal(comm, start, course, precision="fp16")
    half.learner.scaler = small_scale()
    expected, found = whole.train()[0], half.train()[0]
    # Before they are unscaled, gradients are sums over ranks and passes of scaled ones.
    assert_close({name: value * 2**8 for name, value in expected.items()}, found, tolerance=0.25)
    assert half.learner.skipped == 0
    same_everywhere(comm, half)


def test_a_step_that_is_nan_on_one_rank_leaves_no_trace_on_any(comm, start, monkeypatch) -> None:
    spoil_losses(monkeypatch, comm, lambda call: call == 1)
    rehearsal = Rehearsal(comm, start, Course(images=4, steps=3, sizes=(64,)), precision="fp16")
    rehearsal.learner.scaler = small_scale()
    states, scales = [], []
    for _ in rehearsal.steps():
        states.append({name: value.clone() for name, value in rehearsal.model.state_dict().items()})
        scales.append(rehearsal.learner.scaler.get_scale())
        same_everywhere(comm, rehearsal)
    moved = [
        any(not before[name].equal(after[name]) for name in after)
        for before, after in zip([start.state_dict(), *states], states, strict=False)
    ]
    assert moved == [True, False, True]
    assert scales == [2.0**8, 2.0**7, 2.0**7]
    assert rehearsal.learner.average.updates == 2


def test_compressed_gradients_are_the_sums_within_half_precision(comm, monkeypatch) -> None:
    monkeypatch.setattr(comm, "_compression", "fp16", raising=False)
    # Near the end of half precision's range, where the sum is out of it; in the middle; near its small end.
    shares = torch.tensor([60000.0, -1 - 2**-13, 3e-3, -1e-4, 0.0])
    model = nn.Linear(5, 1, bias=False)
    reduction = comm.reduce_gradients(torch.optim.SGD(model.parameters(), lr=1.0), model)
    for passes in (1, 2):
        reduction.begin(passes)
        for _ in range(passes):
            model(shares / passes).sum().backward()
        reduction.wait()
        found, expected = model.weight.grad[0].clone(), shares * comm.world.size
        assert found.dtype == torch.float32
        # Rounding on the way in and with each sum: by 2^-11, below 2^-14 by 2^-25 times the ranks at the end.
        bound = expected.abs() * comm.world.size * 2**-11 + comm.world.size**2 * 2**-25
        assert ((found - expected).abs() <= bound).all(), found
        assert found.equal(expected) == (comm.world.size == 1), "was nothing compressed?"
        reduction.zero_grad()
