"""Every collective, on whatever number of ranks the job has; expectations are written for any."""

import copy
import os
import random
import time
from functools import partial

import pytest
import torch
from torch import nn

from hvdyolo.distributed import horovod_communicator
from hvdyolo.distributed.device import share_of_cores
from hvdyolo.distributed.gradient_buckets import bucket_gradients
from hvdyolo.utils.errors import InternalError


def triangle(comm) -> float:
    """0 + 1 + … + (size - 1)."""
    return comm.world.size * (comm.world.size - 1) / 2


def small_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_ranks_are_numbered(comm) -> None:
    ranks = comm.gather_objects("ranks", comm.world.rank)
    assert ranks == list(range(comm.world.size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sum_is_a_sum(comm, dtype) -> None:
    total = comm.sum(f"sum {dtype}", torch.full((3,), float(comm.world.rank), dtype=dtype))
    assert total.dtype == dtype
    assert total.tolist() == [triangle(comm)] * 3


def test_sums_in_flight_do_not_disturb_each_other(comm) -> None:
    pending = [comm.sum_async(f"flight {n}", torch.tensor([float(n + comm.world.rank)])) for n in range(5)]
    assert comm.broadcast_object("meanwhile", comm.world.rank) == 0
    for n, sum_ in reversed(list(enumerate(pending))):
        assert sum_.wait().item() == n * comm.world.size + triangle(comm)


def test_objects_of_very_different_sizes_are_gathered(comm) -> None:
    mine = {"rank": comm.world.rank, "content": b"x" * (comm.world.rank * 100_000)}
    gathered = comm.gather_objects("objects", mine)
    assert [value["rank"] for value in gathered] == list(range(comm.world.size))
    assert [len(value["content"]) for value in gathered] == [r * 100_000 for r in range(comm.world.size)]


def test_what_is_too_large_for_one_call_goes_in_rounds(comm, monkeypatch) -> None:
    monkeypatch.setattr(horovod_communicator, "_MOST_BYTES_GATHERED", 64 * comm.world.size)
    mine = bytes(range(256)) * (1 + comm.world.rank)
    expected = [bytes(range(256)) * (1 + rank) for rank in range(comm.world.size)]
    assert comm.gather_objects("rounds", mine) == expected


def test_state_is_broadcast_and_its_equality_checked(comm) -> None:
    model = small_model(seed=comm.world.rank)
    model[1].running_mean.fill_(comm.world.rank)
    comm.broadcast_state(model)
    expected = small_model(seed=0).state_dict()
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name


def test_ranks_that_differ_are_told_where(comm) -> None:
    model = small_model(seed=1)
    if comm.world.rank == comm.world.size - 1 and comm.world.size > 1:
        with torch.no_grad():
            model[2].weight[1, 2] += 1e-7
    if comm.world.size == 1:
        comm.check_equal(model.state_dict())
    else:
        with pytest.raises(InternalError, match=r"disagree about 2\.weight"):
            comm.check_equal(model.state_dict())


def test_running_statistics_become_their_average(comm) -> None:
    model = small_model(seed=1)
    model[1].running_mean.fill_(float(comm.world.rank))
    model[1].running_var.fill_(2.0 + comm.world.rank)
    before = model[0].weight.clone()
    comm.average_running_statistics(model)
    average = triangle(comm) / comm.world.size
    assert torch.allclose(model[1].running_mean, torch.full((4,), average))
    assert torch.allclose(model[1].running_var, torch.full((4,), 2 + average))
    assert model[0].weight.equal(before)


def test_gradients_are_summed_over_ranks_and_passes_once_a_step(comm) -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    reduction = comm.reduce_gradients(optimizer, model)
    expected = torch.zeros(1, 2)
    # More passes, then fewer: what an accumulation that ramps up, and an epoch that ends, do.
    for passes in (1, 2, 3, 1):
        reduction.begin(passes)
        for number in range(passes):
            inputs = torch.tensor([[1.0 + comm.world.rank, float(number)]])
            model(inputs).sum().backward()
        reduction.wait()
        first, second = passes * (comm.world.size + triangle(comm)), comm.world.size * sum(range(passes))
        total = torch.tensor([[first, second]])
        assert model.weight.grad.equal(total), (passes, model.weight.grad, total)
        reduction.step()
        reduction.zero_grad()
        expected -= total
        assert model.weight.detach().equal(expected)


def test_gradients_in_several_buckets_are_summed_alike(comm, monkeypatch) -> None:
    few_bytes = partial(bucket_gradients, most_bytes=48)
    monkeypatch.setattr("hvdyolo.distributed.horovod_communicator.bucket_gradients", few_bytes)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)]).double()
    reduction = comm.reduce_gradients(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(3):
        shares = [torch.full((2, 3), float(rank + step)).double() for rank in range(comm.world.size)]
        copied = copy.deepcopy(model)
        copied(torch.cat(shares)).square().sum().backward()
        reduction.begin(1)
        model(shares[comm.world.rank]).square().sum().backward()
        reduction.wait()
        for found, expected in zip(model.parameters(), copied.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-12)
        reduction.step()
        reduction.zero_grad()
    comm.check_equal(model.state_dict())


def test_the_order_of_sums_is_the_same_in_every_step(comm, monkeypatch) -> None:
    """Whatever Horovod finds together: several buckets are under way, some late on some rank."""
    few_bytes = partial(bucket_gradients, most_bytes=64 << 10)
    monkeypatch.setattr("hvdyolo.distributed.horovod_communicator.bucket_gradients", few_bytes)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(128, 128, bias=False) for _ in range(8)])
    reduction = comm.reduce_gradients(torch.optim.SGD(model.parameters(), lr=0.1), model)
    inputs = torch.randn(4, 128, generator=torch.Generator().manual_seed(comm.world.rank))
    late = random.Random(comm.world.rank)
    for layer in model:
        layer.weight.register_hook(lambda _: time.sleep(late.choice([0, 0, 0.03])))
    sums = []
    for _ in range(8):
        reduction.begin(1)
        model(inputs).square().sum().backward()
        reduction.wait()
        sums.append(torch.cat([layer.weight.grad.flatten() for layer in model]))
        reduction.zero_grad()
    assert sums[0].abs().max() > 0
    assert [found.equal(sums[0]) for found in sums] == [True] * 8


def test_a_parameter_that_took_no_part_on_one_rank_is_still_reduced(comm) -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    reduction = comm.reduce_gradients(torch.optim.SGD(model.parameters(), lr=1.0), model)
    reduction.begin(1)
    chosen = [model[0], model[1]] if comm.world.rank == 0 else [model[0]]
    sum(layer(torch.ones(1, 1)).sum() for layer in chosen).backward()
    reduction.wait()
    assert model[0].weight.grad.item() == comm.world.size
    assert model[1].weight.grad.item() == 1.0


def test_ranks_that_each_leave_out_what_the_other_sends_do_not_wait_for_ever(comm) -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    reduction = comm.reduce_gradients(torch.optim.SGD(model.parameters(), lr=1.0), model)
    reduction.begin(1)
    rank, size = comm.world.rank, comm.world.size
    chosen = [model[rank]] if rank < 2 <= size else list(model)
    sum(layer(torch.ones(1, 1)).sum() for layer in chosen).backward()
    reduction.wait()
    assert [layer.weight.grad.item() for layer in model] == [max(size - 1, 1)] * 2


def test_the_optimizers_state_is_seen_through_the_one_it_was_made_from(comm) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    reduction = comm.reduce_gradients(optimizer, model)
    reduction.begin(1)
    model(torch.ones(1, 1)).sum().backward()
    reduction.wait()
    reduction.step()
    assert optimizer.state[model.weight]["momentum_buffer"].item() == comm.world.size
    optimizer.param_groups[0]["lr"] = 0.0  # and its rates are obeyed
    before = model.weight.detach().clone()
    reduction.step()
    assert model.weight.detach().equal(before)


def test_cores_that_ranks_share_are_divided_and_own_ones_are_not(comm) -> None:
    available = sorted(os.sched_getaffinity(0))
    try:
        assert share_of_cores(comm) == max(len(available) // comm.world.size, 1)
        if comm.world.size <= len(available):
            os.sched_setaffinity(0, {available[comm.world.rank]})
            assert share_of_cores(comm) == 1
            # All but this rank's own core are everybody's: each has its own and a part of the others.
            others = len(available) - comm.world.size
            os.sched_setaffinity(0, {available[comm.world.rank], *available[comm.world.size :]})
            assert share_of_cores(comm) == 1 + others // comm.world.size
    finally:
        os.sched_setaffinity(0, available)
