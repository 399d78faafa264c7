"""What Horovod does with tensors on GPUs, through NCCL, which wants a GPU for each rank.

``mpirun -np 1`` is enough to run them: Horovod and NCCL work for one rank too, where hvdyolo itself would
leave them out. ``benchmarks/gpu.sh`` starts them on as many ranks as there are GPUs.
"""

from collections.abc import Iterator

import pytest
import torch
from rehearsal import Course, Rehearsal, assert_close, narrow_model
from torch import Tensor, nn

from hvdyolo.distributed.communicator import Communicator
from hvdyolo.distributed.device import check_devices, choose_device
from hvdyolo.distributed.single import SingleProcess
from hvdyolo.distributed.world import launched_world
from hvdyolo.engine.compilation import record_network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or launched_world() is None, reason="no GPU, or not started by mpirun"
    ),
]


@pytest.fixture(scope="module")
def ranks(comm: Communicator) -> Iterator[Communicator]:
    """Horovod's, of one rank too."""
    from hvdyolo.distributed.horovod_communicator import HorovodCommunicator

    if comm.world.size > 1:
        yield comm
        return
    world = launched_world()
    assert world is not None
    alone = HorovodCommunicator(world, {})
    yield alone
    alone.close()


@pytest.fixture
def device(ranks: Communicator) -> torch.device:
    if ranks.world.local_size > torch.cuda.device_count():
        pytest.skip("fewer GPUs than ranks")
    found = choose_device(ranks.world)
    check_devices(ranks, found)
    return found


def total(ranks: Communicator, tensor: Tensor) -> Tensor:
    """What the sum of rank + 1 times ``tensor`` has to be."""
    return tensor * (ranks.world.size * (ranks.world.size + 1) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_sums_stay_on_the_gpu(ranks: Communicator, device: torch.device, dtype: torch.dtype) -> None:
    import horovod.torch

    assert horovod.torch.nccl_built()
    whole = torch.arange(1000, dtype=dtype, device=device) % 50
    found = ranks.sum(f"on a GPU, {dtype}", whole * (ranks.world.rank + 1))
    assert found.device == device
    assert found.equal(total(ranks, whole))


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_gradients_are_summed_where_they_are(
    ranks: Communicator, device: torch.device, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_compression", compression)
    model = nn.Linear(3, 2, bias=False).to(device)
    reduction = ranks.reduce_gradients(torch.optim.SGD(model.parameters(), lr=1.0), model)
    for passes in (1, 2, 1):
        reduction.begin(passes)
        for _ in range(passes):
            (model(torch.ones(1, 3, device=device)) * (ranks.world.rank + 1)).sum().backward()
        reduction.wait()
        expected = total(ranks, torch.full((2, 3), float(passes), device=device))
        # 3 ranks' shares of the mean are no whole numbers.
        torch.testing.assert_close(
            model.weight.grad, expected, rtol=1e-3 if compression == "fp16" else 0, atol=0
        )
        before = model.weight.detach().clone()
        reduction.step()
        torch.testing.assert_close(model.weight.detach(), before - model.weight.grad)
        reduction.zero_grad()


@pytest.mark.parametrize("passes", [1, 2])
def test_gpus_learn_what_one_processor_learns(
    ranks: Communicator, device: torch.device, passes: int, tmp_path
) -> None:
    start = narrow_model(tmp_path).double()
    images = 8 // passes
    if images < ranks.world.size:
        pytest.skip("more ranks than images")
    start.eval()  # freezes batch norm
    start.model[-1].train()  # the head gives raw levels, as in training
    expected_gradient, expected_weights = Rehearsal(SingleProcess(), start, Course(8)).train()
    gradient, weights = Rehearsal(ranks, start, Course(images, passes), device=device).train()
    assert_close(expected_gradient, gradient)
    for expected, found in zip(expected_weights, weights, strict=True):
        assert_close(expected, found)


def test_batch_norm_over_all_gpus_is_that_of_one_processor(
    ranks: Communicator, device: torch.device, tmp_path
) -> None:
    start = narrow_model(tmp_path).double()
    if not 1 < ranks.world.size <= 8:
        pytest.skip("one rank has all images, and more than eight have none")
    expected_gradient, expected_weights = Rehearsal(SingleProcess(), start, Course(8)).train()
    gradient, weights = Rehearsal(ranks, start, Course(8), synchronised=True, device=device).train()
    assert_close(expected_gradient, gradient, 1e-8)
    assert_close(expected_weights[0], weights[0], 1e-8)


def test_networks_that_are_recorded_learn_the_same_through_nccl(
    ranks: Communicator, device: torch.device, tmp_path
) -> None:
    start, course = narrow_model(tmp_path), Course(4 * ranks.world.size, sizes=(64,))
    plain, recorded = (Rehearsal(ranks, start, course, device=device) for _ in range(2))
    recorded.learner.replayed = True
    record_network(recorded.model, images=4, size=64, precision="fp32")
    expected, found = plain.train()[1], recorded.train()[1]
    assert_close(expected[-1], found[-1], 1e-3)


def test_weights_on_gpus_are_spread_and_statistics_averaged(
    ranks: Communicator, device: torch.device
) -> None:
    torch.manual_seed(ranks.world.rank)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(device)
    ranks.broadcast_state(model)
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 4, 3).to(device)
    assert model[0].weight.equal(expected.weight)
    model[1].running_var.fill_(ranks.world.rank + 1.0)
    ranks.average_running_statistics(model)
    mean = (ranks.world.size + 1) / 2
    torch.testing.assert_close(model[1].running_var, torch.full((4,), mean, device=device))
