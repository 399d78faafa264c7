"""Pictures of what training sees."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvdyolo.data.draw import draw_detections
from hvdyolo.data.loader import TrainLoader
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine import inspection
from hvdyolo.engine.inspection import main
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.engine.training_parts import build_input_sizes, build_plan
from hvdyolo.models.build import build_model
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.settings import read_config
from hvdyolo.utils.errors import UsageError

SETTINGS = [
    "--loader.image_size", "512",
    "--loader.workers", "0",
    "--train.batch", "16",
    "--augment.multi_scale", "0.5",
    "--augment.flip_up_down", "0.5",
    "--augment.degrees", "10",
]  # fmt: skip


def test_pictures_are_the_inputs_of_training(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def watch(image: np.ndarray, boxes: np.ndarray, *rest) -> None:
        drawn.append((image, boxes))
        draw_detections(image, boxes, *rest)

    monkeypatch.setattr(inspection, "draw_detections", watch)
    out = tmp_path / "pictures"
    assert main([str(synthetic), "--augment", "--count", "4", "--out", str(out), *SETTINGS]) == 0
    assert len(list(out.glob("*.png"))) == 4

    config = read_config(None, SETTINGS)
    split = PackedSplit(synthetic, "train")
    plan = build_plan(config, len(split))
    schedule = TrainingSchedule(config.optimizer, config.train.epochs, plan.batches_per_epoch, 16)
    at = build_input_sizes(config, schedule, build_model("yolov5n", 4)).at
    loader = TrainLoader(
        split, plan, config.loader, config.augment, lambda *_: None, rank=0, size=1, epochs=2, input_size=at
    )
    # 40 samples make three batches of 16.
    for number, (batch, (image, boxes)) in enumerate(zip(loader, drawn, strict=False)):
        assert (batch.epoch, batch.index) == divmod(number, 3)
        inputs = prepare_images(batch.images, batch.flip, batch.colour_gains, size=batch.input_size)
        assert image.shape == (batch.input_size, batch.input_size, 3)
        np.testing.assert_allclose(image, inputs[0].permute(1, 2, 0).numpy() * 255, atol=0.51)
        centres = batch.labels[0][:, 1:3] * batch.input_size
        np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:]) / 2, centres, atol=1e-3)
    assert len({image.shape for image, _ in drawn}) > 1
    names = sorted(path.name for path in out.iterdir())
    assert names[0].startswith("train-epoch-0-batch-000000-sample-")
    assert names[3].startswith("train-epoch-1-batch-000000-sample-")
    sides = {Image.open(path).width for path in out.iterdir()}
    assert sides <= {image.shape[0] * factor for image, _ in drawn for factor in (1, 2)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--split", "test"], "no split 'test'"),
        (["--count", "-1"], "--count must not be negative"),
        (["--augment.mixup", "2"], r"'augment\.mixup' must be 0 … 1"),
        (["--augment.mixop", "1"], "did you mean"),
        (["--loader.image_size", "100"], "multiple of 32"),
        (["--augment.copy_paste", "0.5"], "'train' of .* was packed without --polygons"),
    ],
)
def test_wrong_words_are_told(synthetic: Path, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        main([str(synthetic), "--augment", "--out", str(tmp_path), *words])


def test_a_folder_is_asked_for(synthetic: Path) -> None:
    with pytest.raises(UsageError, match="--out"):
        main([str(synthetic), "--augment"])
