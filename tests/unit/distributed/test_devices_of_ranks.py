"""One GPU a rank, or none on any."""

import pytest
import torch

from hvdyolo.distributed.device import check_devices, find_mistake, find_other_processor, torch_threads
from hvdyolo.distributed.single import SingleProcess


@pytest.mark.parametrize(
    "places",
    [
        [("a", None), ("a", None), ("b", None)],
        [("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-3")],
        # Where a node has no name of its own, a GPU still has.
        [("same", "GPU-1"), ("same", "GPU-2")],
    ],
)
def test_ranks_with_devices_of_their_own_are_right(places: list[tuple[str, str | None]]) -> None:
    assert find_mistake(places) is None


def test_a_shared_gpu_is_told_with_its_host() -> None:
    places = [("a", "GPU-1"), ("b", "GPU-2"), ("b", "GPU-2"), ("b", "GPU-2")]
    assert find_mistake(places) == (
        "3 ranks on b share one GPU, and each needs its own; start as many ranks a node as it has GPUs."
    )


def test_a_host_without_gpus_among_others_is_told() -> None:
    mistake = find_mistake([("a", "GPU-1"), ("b", None)])
    assert mistake is not None
    assert mistake.startswith("b has no usable GPU")


def test_one_process_on_a_cpu_is_right() -> None:
    import torch

    check_devices(SingleProcess(), torch.device("cpu"))


def test_threads_of_a_processor_are_not_asked_for_beside_a_gpu() -> None:
    assert torch_threads(torch.device("cpu"), cores=6) == 6
    assert torch_threads(torch.device("cuda", 1), cores=6) == 1


def test_processors_of_one_kind() -> None:
    assert find_other_processor([("a", "AVX2")]) is None
    assert find_other_processor([("a", "AVX2"), ("b", "AVX2"), ("b", "AVX2")]) is None


def test_processors_of_two_kinds_are_named_with_what_helps() -> None:
    mistake = find_other_processor([("a", "AVX2"), ("c", "AVX2"), ("b", "AVX512")])
    assert mistake is not None
    assert "with AVX2 on a and with AVX512 on b" in mistake
    assert "ATEN_CPU_CAPABILITY=avx2" in mistake
