"""Lists of tensors that are copied and moved in a few calls."""

import torch

from hvdyolo.ops.tensor_lists import copies_of, copy_tensors, move_together


def tensors() -> list[torch.Tensor]:
    """Of several types and sizes, none and odd ones included."""
    return [
        torch.arange(7, dtype=torch.int64),
        torch.rand(3, 4),
        torch.tensor(2, dtype=torch.int64),
        torch.zeros(0, 4),
        torch.tensor([True, False, True]),
        torch.rand(2, 3, dtype=torch.float64).t(),
        torch.rand(5),
    ]


def test_copies_are_equal_and_others() -> None:
    originals = tensors()
    copies = copies_of(originals)
    for copy, original in zip(copies, originals, strict=True):
        assert copy.dtype == original.dtype
        assert copy.equal(original)
    before = [original.clone() for original in originals]
    for copy in copies:
        copy.zero_()
    assert all(original.equal(kept) for original, kept in zip(originals, before, strict=True))
    copy_tensors(iter(copies), iter(originals))
    assert all(copy.equal(original) for copy, original in zip(copies, originals, strict=True))


def test_what_is_moved_together_is_the_same_in_one_piece_of_memory() -> None:
    originals = tensors()
    moved = move_together(originals, torch.device("cpu"))
    for found, original in zip(moved, originals, strict=True):
        assert found.dtype == original.dtype
        assert found.equal(original)
    assert len({found.untyped_storage().data_ptr() for found in moved}) == 1
    moved[1].zero_()
    assert originals[1].any()
    assert moved[0].equal(originals[0])
    assert moved[4].equal(originals[4])


def test_nothing_can_be_moved() -> None:
    assert move_together([], torch.device("cpu")) == []
