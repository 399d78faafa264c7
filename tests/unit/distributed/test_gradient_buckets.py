"""Which gradients travel together, and that each comes back to its parameter."""

import torch
from torch import nn

from hvdyolo.distributed.gradient_buckets import GradientBucket, bucket_gradients


def parameters(*elements: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(number, dtype=dtype)) for number in elements]


def sizes(*learned: nn.Parameter, most_bytes: int) -> list[list[int]]:
    buckets = bucket_gradients(learned, most_bytes)
    assert [p for bucket in buckets for p in bucket.parameters] == list(learned)
    assert [bucket.flat.numel() for bucket in buckets] == [
        sum(p.numel() for p in bucket.parameters) for bucket in buckets
    ]
    return [[p.numel() for p in bucket.parameters] for bucket in buckets]


def test_a_bucket_holds_as_many_as_there_is_room_for() -> None:
    assert sizes(*parameters(3, 3, 4), most_bytes=40) == [[3, 3, 4]]
    assert sizes(*parameters(3, 3, 5), most_bytes=40) == [[3, 3], [5]]
    assert sizes(*parameters(3, 11, 3, 3), most_bytes=40) == [[3], [11], [3, 3]]
    assert sizes(most_bytes=40) == []


def test_no_bucket_mixes_types() -> None:
    halves = parameters(2, dtype=torch.float16)
    buckets = bucket_gradients([*parameters(2), *halves, *parameters(2)])
    assert [bucket.flat.dtype for bucket in buckets] == [torch.float32, torch.float16, torch.float32]


def test_gradients_come_back_to_where_they_came_from() -> None:
    layers = nn.ModuleList([nn.Conv2d(2, 3, 2), nn.Linear(2, 2), nn.Linear(1, 1)])
    bucket = GradientBucket([*layers.parameters()])
    given = {}
    for number, (name, parameter) in enumerate(layers.named_parameters()):
        if name != "1.bias":
            given[name] = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.grad = given[name].clone()
    # As oneDNN leaves them beside channels last: the values are elsewhere in memory.
    layers[0].weight.grad = given["0.weight"].to(memory_format=torch.channels_last)
    bucket.flat.fill_(7.0)
    bucket.fill()
    bucket.flat.mul_(2)  # what a sum over two ranks would do
    bucket.hand_out()
    for name, parameter in layers.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.equal(2 * given.get(name, torch.zeros(2))), name
        assert parameter.grad.untyped_storage().data_ptr() == bucket.flat.untyped_storage().data_ptr()


def test_nothing_is_left_of_the_step_before() -> None:
    layer = nn.Linear(2, 1)
    bucket = GradientBucket([*layer.parameters()])
    for scale in (1.0, 3.0):
        layer.zero_grad()
        (scale * layer(torch.tensor([[1.0, 2.0]]))).sum().backward()
        bucket.fill()
        bucket.hand_out()
        assert bucket.flat.tolist() == [scale, 2 * scale, scale]
