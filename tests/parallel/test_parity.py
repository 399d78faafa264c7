"""The number of ranks changes the time, not the result.

Started on R ranks, the real step feed, learner, loss and gradient reduction train on R shares of a batch of
eight images. The same parts in one process, without Horovod, train on the whole batch. Gradients and the
first updates agree to 1e-9 in double precision: with batch norm frozen, with batch norm over all ranks'
images, and with each rank's own against one process that normalises the same groups of images.
"""

from functools import partial

import pytest
import torch
from rehearsal import Course, Rehearsal, assert_close, narrow_model
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from hvdyolo.config import LossConfig, OptimizerConfig
from hvdyolo.data.order import BatchPlan
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.engine.transfer import freeze, read_lr_factors
from hvdyolo.models.build import DetectionModel

IMAGES = 8


@pytest.fixture
def learning(tmp_path) -> DetectionModel:
    return narrow_model(tmp_path).double()


@pytest.fixture
def start(learning) -> DetectionModel:
    learning.eval()  # freezes batch norm
    learning.model[-1].train()  # the head gives raw levels, as in training
    return learning


def statistics(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_buffers()
    return {name: value for name, value in named if name.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize("passes", [1, 2])
def test_ranks_give_the_gradient_and_updates_of_one_process(comm, start, passes: int) -> None:
    whole = Rehearsal(SingleProcess(), start, Course(IMAGES))
    shares = Rehearsal(comm, start, Course(IMAGES // passes, passes))
    if len(shares.slots) == 0:
        pytest.skip("more ranks than images")
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert max(value.abs().max() for value in expected_gradient.values()) > 1e-3
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
    first, last = expected_weights[0], expected_weights[-1]
    assert any(not first[name].equal(last[name]) for name in first)


@pytest.mark.parametrize(
    "course",
    [
        Course(IMAGES, optimizer=OptimizerConfig(name="adamw", lr=0.001, warmup_epochs=0.0, clip_norm=1e9)),
        # Of twice the images that the settings are for, and clipped.
        Course(
            IMAGES,
            nominal_batch=IMAGES // 2,
            optimizer=OptimizerConfig(name="lars", warmup_epochs=0.0, clip_norm=1.0),
            loss=LossConfig(focal_gamma=1.5, class_weights="1, 2, 5", label_smoothing=0.1),
        ),
    ],
    ids=["adamw", "lars"],
)
def test_optimizers_and_losses_do_not_see_the_ranks(comm, start, course: Course) -> None:
    whole = Rehearsal(SingleProcess(), start, course)
    shares = Rehearsal(comm, start, course)
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
    # State is under the model's parameters, where checkpoints look for it.
    assert set(shares.learner.optimizer.state) == set(shares.model.parameters())


@pytest.mark.parametrize("passes", [1, 2])
def test_frozen_layers_take_no_part_and_parts_may_have_rates_of_their_own(comm, start, passes: int) -> None:
    freeze(start, "backbone, *.bn.weight")
    factors = read_lr_factors(start, "neck=0.5, head=3")
    frozen = {name for name, value in start.named_parameters() if not value.requires_grad}
    whole = Rehearsal(SingleProcess(), start, Course(IMAGES, factors=factors))
    shares = Rehearsal(comm, start, Course(IMAGES // passes, passes, factors=factors))
    if len(shares.slots) == 0:
        pytest.skip("more ranks than images")
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert gradient.keys() == {name for name, _ in start.named_parameters()} - frozen
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
    before = dict(start.named_parameters())
    for name, value in weights[-1].items():
        assert value.equal(before[name]) == (name in frozen), name
    comm.check_equal(dict(shares.model.named_parameters()))


def test_synchronised_batch_norm_gives_what_one_process_computes(comm, learning) -> None:
    freeze(learning, "0-3")
    learning.train()
    whole = Rehearsal(SingleProcess(), learning, Course(IMAGES))
    shares = Rehearsal(comm, learning, Course(IMAGES), synchronised=True)
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
    for expected, found in (
        (whole.model, shares.model),
        (whole.learner.average.model, shares.learner.average.model),
    ):
        assert_close(statistics(expected), statistics(found))
    assert list(whole.model.state_dict()) == list(shares.model.state_dict())
    before = statistics(learning)
    for name, value in statistics(shares.model).items():
        assert value.equal(before[name]) == name.startswith(("model.0.", "model.1.", "model.2.", "model.3."))
    comm.check_equal(shares.model.state_dict())  # running statistics included, bit by bit


def test_local_batch_norm_gives_what_one_process_computes_with_the_same_groups(comm, learning) -> None:
    ranks = range(comm.world.size)
    plan = BatchPlan(samples=IMAGES, batch=IMAGES, seed=0)
    groups = [len(plan.slots(rank, comm.world.size)) for rank in ranks]

    def normalise_groups(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        normalised = [
            batch_norm(part, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
            for part in x.split(groups)
        ]
        return torch.cat(normalised)

    whole = Rehearsal(SingleProcess(), learning, Course(IMAGES))
    for norm in whole.model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.forward = partial(normalise_groups, norm)  # type: ignore[method-assign]
    shares = Rehearsal(comm, learning, Course(IMAGES))
    expected_gradient, expected_weights = whole.train()
    gradient, weights = shares.train()
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)
