"""Rectangles are of like images, as small as can be, and the same for any number of ranks."""

from collections.abc import Callable

import numpy as np
import pytest

from hvdyolo.config import LoaderConfig
from hvdyolo.data.decoding import read_pixels
from hvdyolo.data.evaluation_batches import InputBatch, rectangular_batches, square_batches
from hvdyolo.data.evaluation_loader import EvaluationLoader
from hvdyolo.data.pack import main as pack
from hvdyolo.data.reader import PackedSplit

# Width and height; twice as large as the input of 64 pixels, half as large, and of its size.
SHAPES = [(64, 48), (48, 64), (64, 64), (128, 32), (32, 16), (64, 20), (20, 64), (64, 40), (40, 64), (32, 32)]


@pytest.fixture
def shapes(tmp_path, encode: Callable[..., bytes]) -> PackedSplit:
    """A split of images of all of ``SHAPES``, in an order of its own."""
    for folder in ("images", "labels"):
        (tmp_path / "source" / folder / "val").mkdir(parents=True)
    for number, (width, height) in enumerate(SHAPES):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        (tmp_path / "source/images/val" / f"{number}.png").write_bytes(encode(noise))
        (tmp_path / "source/labels/val" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "source/data.yaml").write_text("names: [thing]\nval: images/val\n")
    packing = ["--source", "yolo", "--root", tmp_path / "source", "--out", tmp_path / "packed"]
    assert pack([str(word) for word in packing]) == 0
    return PackedSplit(tmp_path / "packed", "val")


def inputs_by_shape(
    split: PackedSplit, batches: list[InputBatch]
) -> list[tuple[list[tuple[int, int]], int, int]]:
    """Width and height of each batch's images as stored, and its height and width."""
    return [
        ([split.size(sample)[::-1] for sample in each.samples], each.height, each.width) for each in batches
    ]


def test_batches_by_hand(shapes: PackedSplit) -> None:
    """By height over width: 1/4, 0.3125, 1/2, 0.625, 3/4, 1, 1, 4/3, 1.6, 3.2."""
    batches = inputs_by_shape(shapes, rectangular_batches(shapes, 64, 3, 16, 0, 1))
    assert [sorted(images) for images, *_ in batches] == [
        [(32, 16), (64, 20), (128, 32)],
        [(64, 40), (64, 48), batches[1][0][2]],
        sorted([batches[2][0][0], (48, 64), (40, 64)]),
        [(20, 64)],
    ]
    assert {batches[1][0][2], batches[2][0][0]} == {(64, 64), (32, 32)}
    # 64 x 32 of the image that is enlarged; 64 x 48 beside a square; 20 pixels wide in two times 16.
    assert [sides for _, *sides in batches] == [[32, 64], [64, 64], [64, 64], [64, 32]]


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_share_the_batches_of_one(shapes: PackedSplit, batch: int, size: int) -> None:
    everything = rectangular_batches(shapes, 64, batch, 16, 0, 1)
    assert sorted(sample for each in everything for sample in each.samples) == list(range(len(SHAPES)))
    shares = [rectangular_batches(shapes, 64, batch, 16, rank, size) for rank in range(size)]
    for number, each in enumerate(everything):
        assert shares[number % size][number // size] == each
    assert sum(map(len, shares)) == len(everything)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_whole_centred_and_fewer_pixels(shapes: PackedSplit, workers: int) -> None:
    pixels = 0
    settings = LoaderConfig(workers=workers)
    with EvaluationLoader(shapes, settings, image_size=64, batch=2, rank=0, size=1, multiple=16) as loader:
        for batch in list(loader):  # all are kept while the workers go on
            _, height, width, _ = batch.images.shape
            pixels += batch.images[..., 0].numel()
            for image, sample, letterbox in zip(
                batch.images.numpy(), batch.samples, batch.letterboxes, strict=True
            ):
                stored = read_pixels(shapes, sample, 10**6)
                if max(stored.shape) != 64:
                    continue  # resized
                left, top = (width - stored.shape[1]) // 2, (height - stored.shape[0]) // 2
                expected = np.full((height, width, 3), 114, dtype=np.uint8)
                expected[top : top + stored.shape[0], left : left + stored.shape[1]] = stored
                np.testing.assert_array_equal(image, expected)
                assert (letterbox.pad_left, letterbox.pad_top) == (left, top)
    # Two each, by height over width: 1/4 and 0.31, 1/2 and 0.63, 3/4 and 1, 1 and 4/3, 1.6 and 3.2.
    assert pixels == 2 * 64 * (32 + 48 + 64 + 64 + 48)
    squares = square_batches(shapes, 64, 2, 0, 1)
    assert sum(len(each.samples) * each.height * each.width for each in squares) == 10 * 64 * 64
