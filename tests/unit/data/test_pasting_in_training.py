"""Objects that training pastes: by polygons of the split, never by damaged ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdyolo.config import AugmentConfig, LoaderConfig
from hvdyolo.data.augment import augment
from hvdyolo.data.decoding import read_pixels
from hvdyolo.data.images import MOST_PIXELS
from hvdyolo.data.loader import TrainBatch, TrainLoader
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.parameters import draw_parameters
from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.data.render import renderer
from hvdyolo.data.train_part import _TrainImages

Build = Callable[..., Any]
BATCH, DAMAGED = 8, 5
PASTED = AugmentConfig(
    mosaic=0.0,
    scale=0.0,
    translate=0.0,
    flip_left_right=0.0,
    value=0.0,
    saturation=0.0,
    hue=0.0,
    copy_paste=1.0,
)


def batches(split: PackedSplit, augmentation: AugmentConfig, **loader: Any) -> Iterator[TrainBatch[None]]:
    settings = LoaderConfig(image_size=64, workers=0, **loader)
    plan = BatchPlan(len(split), BATCH, seed=1, partners=augmentation.partners)
    with TrainLoader(
        split, plan, settings, augmentation, lambda *_: None, rank=0, size=1, epochs=1
    ) as loading:
        yield from loading


def damage(root: Path) -> None:
    """Flip a bit at the end of the entry of sample ``DAMAGED``."""
    path = root / "train.polygons"
    raw = bytearray(path.read_bytes())
    end = int.from_bytes(raw[32 + 8 * (DAMAGED + 1) :][:8], "little")
    raw[end - 1] ^= 1
    path.write_bytes(raw)


def test_objects_with_polygons_are_there_twice_and_crowds_are_not(packed: Build) -> None:
    """Sample i has i % 4 boxes, of which the second is a crowd and the third has no polygon."""
    split = PackedSplit(packed(each=16, polygons=True).root, "train", outlines=True)
    for batch in batches(split, PASTED):
        for sample, labels, image in zip(batch.samples, batch.labels, batch.images.numpy(), strict=True):
            boxes = sample % 4
            assert len(labels) == (0, 2, 2, 3)[boxes]
            if boxes:
                np.testing.assert_allclose(labels[-1], labels[0] * (1, -1, 1, 1, 1) + (0, 1, 0, 0, 0))
            if boxes == 3:
                assert labels[:, 0].tolist() == [0, 2, 0]
            assert image.shape == (64, 64, 3)


def test_decoded_images_are_kept_without_what_is_pasted(packed: Build) -> None:
    split = PackedSplit(packed(each=16, polygons=True).root, "train", outlines=True)
    decoded: dict[int, np.ndarray] = {}
    images = _TrainImages(split, 64, MOST_PIXELS, "raise", decoded)
    outputs = []
    for copy_paste in (0.0, 1.0, 0.0, 1.0):
        settings = AugmentConfig(mosaic=1.0, copy_paste=copy_paste)
        drawn = draw_parameters(settings, 3, range(16), sample_generator(0, 0, 0, Purpose.AUGMENTATION))
        output = np.empty((64, 64, 3), dtype=np.uint8)
        augment(images, drawn, renderer("triangle"), output)
        outputs.append(output)
    assert decoded
    for sample, image in decoded.items():
        np.testing.assert_array_equal(image, read_pixels(split, sample, MOST_PIXELS))
    assert (outputs[0] != outputs[1]).any()
    np.testing.assert_array_equal(outputs[0], outputs[2])
    np.testing.assert_array_equal(outputs[1], outputs[3])


def test_by_default_damaged_polygons_are_raised(packed: Build) -> None:
    root = packed(each=16, polygons=True).root
    damage(root)
    split = PackedSplit(root, "train", outlines=True)
    with pytest.raises(
        DamagedSampleError, match=rf"train\.polygons: sample {DAMAGED} \(folder/ü{DAMAGED}\.png\)"
    ):
        list(batches(split, PASTED))
    assert len(list(batches(PackedSplit(root, "train"), AugmentConfig()))) == 2  # nobody asks for them


def test_skipped_they_cost_their_sample_its_slot_and_others_its_copies(packed: Build) -> None:
    data = packed(each=16, polygons=True)
    settings = AugmentConfig(mosaic=1.0, scale=0.0, translate=0.0, copy_paste=1.0)
    good = list(batches(PackedSplit(data.root, "train", outlines=True), settings))
    damage(data.root)
    split = PackedSplit(data.root, "train", outlines=True)
    found = list(batches(split, settings, damaged="skip"))
    assert sum(batch.skipped for batch in found) == 1
    assert {sample for batch in found for sample in batch.damaged} == {DAMAGED}
    fewer = 0
    for before, after in zip(good, found, strict=True):
        for slot, sample in enumerate(after.samples):
            if sample == DAMAGED:
                assert (after.weights[slot], len(after.labels[slot])) == (0, 0)
                assert after.images[slot].float().std() == 0
            else:
                assert after.weights[slot] == 1
                fewer += len(before.labels[slot]) - len(after.labels[slot])
    assert fewer > 0
