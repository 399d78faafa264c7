"""Photographs as training augments them: as they are stored, or shrunk to the network's size first."""

import itertools
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.augment import augment
from hvdyolo.data.decoding import read_pixels
from hvdyolo.data.images import MOST_PIXELS, resize
from hvdyolo.data.loader import TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.parameters import draw_parameters
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.render import Resampling, renderer
from hvdyolo.data.train_part import _TrainImages
from hvdyolo.ops.letterbox import fit_letterbox


def test_large_ones_are_brought_to_it_by_the_rule_of_evaluation(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    images = _TrainImages(split, 96, MOST_PIXELS, "raise", None)
    for sample in range(8):
        fit = fit_letterbox(*split.size(sample), 96)
        assert images.size(sample) == (fit.resized_height, fit.resized_width)
        assert max(images.size(sample)) == 96 < max(split.size(sample))
        found = images.image(sample, rows=1)
        expected = resize(read_pixels(split, sample, MOST_PIXELS), fit.resized_width, fit.resized_height)
        assert found is not None
        difference = np.abs(found.astype(int) - expected)
        assert (difference.max(), (difference > 0).mean() < 0.01) == (1, True)


@pytest.mark.parametrize(
    ("resampling", "partners", "largest"),
    [("triangle", "any", None), ("triangle", "recent", 96), ("bilinear", "any", 96), ("exact", "any", 96)],
)
def test_only_what_draws_any_size_and_keeps_none_has_them_as_they_are(
    synthetic: Path, resampling: Resampling, partners: Literal["any", "recent"], largest: int | None
) -> None:
    split = PackedSplit(synthetic, "train")
    settings = AugmentConfig(mosaic=0, resampling=resampling, partners=partners, colours="device")
    plan = BatchPlan(len(split), batch=4, seed=0, partners=partners)
    loader = TrainLoader(
        split,
        plan,
        LoaderConfig(image_size=96, workers=0),
        settings,
        assign=lambda *_: None,
        rank=0,
        size=1,
        epochs=1,
    )
    images = _TrainImages(split, largest, MOST_PIXELS, "raise", None)
    for entry, found in zip(plan.entries(0, 0, range(4)), next(iter(loader)).images.numpy(), strict=True):
        generator = sample_generator(plan.seed, entry.epoch, entry.position, Purpose.AUGMENTATION)
        parameters = draw_parameters(settings, entry.sample, entry.partners, generator)
        expected = np.empty_like(found)
        augment(images, parameters, renderer(resampling), expected)
        np.testing.assert_array_equal(found, expected)


def test_small_ones_stay_as_they_are(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    images = _TrainImages(split, 1024, MOST_PIXELS, "raise", None)
    assert images.size(0) == split.size(0)
    height, _ = split.size(0)
    np.testing.assert_array_equal(images.image(0, height), read_pixels(split, 0, MOST_PIXELS))


def test_of_small_ones_the_rows_that_are_asked_for_are_decoded(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    images = _TrainImages(split, 1024, MOST_PIXELS, "raise", None)
    for sample, rows in itertools.product(range(4), (1, 16, 33, 100)):
        found = images.image(sample, rows)
        assert found is not None
        assert rows <= len(found) < split.size(sample)[0]
        np.testing.assert_array_equal(found[:rows], read_pixels(split, sample, MOST_PIXELS)[:rows])


def test_what_is_kept_for_the_next_who_asks_is_whole(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    images = _TrainImages(split, 1024, MOST_PIXELS, "raise", {})
    for rows in (1, 50):
        np.testing.assert_array_equal(images.image(0, rows), read_pixels(split, 0, MOST_PIXELS))


def test_where_damage_is_not_looked_for_all_rows_are_decoded(synthetic: Path) -> None:
    images = _TrainImages(PackedSplit(synthetic, "train", verify=False), 1024, MOST_PIXELS, "raise", None)
    found = images.image(0, 1)
    assert found is not None
    assert len(found) == images.size(0)[0]


def test_coarse_images_are_nearly_those_of_the_split(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    for size, kept, rows in itertools.product((96, 1024), (False, True), (20, 1000)):
        decoded: dict[int, NDArray[np.uint8]] | None = {} if kept else None
        fine = _TrainImages(split, size, MOST_PIXELS, "raise", None).image(0, rows)
        coarse = _TrainImages(split, size, MOST_PIXELS, "raise", decoded, coarse=True).image(0, rows)
        assert fine is not None
        assert coarse is not None
        difference = np.abs(coarse[: len(fine)].astype(int) - fine)
        assert 0 < difference.mean() < 2


def test_a_setting_makes_the_images_of_a_batch_coarse(synthetic: Path) -> None:
    split = PackedSplit(synthetic, "train")
    plan = BatchPlan(len(split), batch=4, seed=0)
    fine, coarse = (
        next(
            iter(
                TrainLoader(
                    split,
                    plan,
                    LoaderConfig(image_size=640, workers=0),
                    AugmentConfig(decoding=decoding, colours="device"),
                    assign=lambda *_: None,
                    rank=0,
                    size=1,
                    epochs=1,
                )
            )
        )
        for decoding in ("fine", "coarse")
    )
    assert fine.samples == coarse.samples
    difference = (fine.images.int() - coarse.images.int()).abs().float()
    assert 0 < difference.mean() < 2
