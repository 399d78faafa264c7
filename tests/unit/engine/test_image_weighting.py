"""Class weights by hand, and which evaluation an epoch goes by."""

from pathlib import Path

import numpy as np
import pytest

from hvdyolo.config import OptimizerConfig
from hvdyolo.data.image_weights import count_boxes
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.image_weighting import ImageWeighting, check_image_weighting
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.settings import read_config
from hvdyolo.utils.errors import UsageError


@pytest.fixture
def split(synthetic: Path) -> PackedSplit:
    return PackedSplit(synthetic, "train")


def test_a_class_weighs_by_its_share_of_boxes_and_by_what_is_not_found(split: PackedSplit) -> None:
    counts = count_boxes(split)
    shares = counts / counts.sum()
    weighting = ImageWeighting(split, seed=0)
    np.testing.assert_allclose(weighting.class_weights(0), 1 / shares)
    weighting.note(1, [0.5, -1.0, 0.9, 1.0])  # -1: nothing of it to score
    np.testing.assert_allclose(weighting.class_weights(1), 1 / shares)
    np.testing.assert_allclose(weighting.class_weights(2), [0.25, 1, 0.01, 0.0001] / shares)


def test_an_epoch_goes_by_the_last_evaluation_before_the_previous_one_ended(split: PackedSplit) -> None:
    """Scores that tell when they are from: the AP of all classes is a hundredth of the epochs done."""

    def epoch_of(weighting: ImageWeighting, epoch: int) -> float:
        first = weighting.class_weights(epoch)[0] / ImageWeighting(split, 0).class_weights(0)[0]
        return round(100 * (1 - first**0.5), 6)

    every = ImageWeighting(split, seed=0)
    for done in range(1, 6):  # when epoch done - 1 is over
        every.note(done, [done / 100] * 4)
        assert epoch_of(every, done) == done - 1
        assert epoch_of(every, done + 1) == done
        resumed = ImageWeighting(
            split, 0, [(epoch, list(scores)) for epoch, scores in every.evaluations.items()]
        )
        assert epoch_of(resumed, done) == done - 1
        assert epoch_of(resumed, done + 1) == done
        assert len(every.evaluations) <= 2

    seldom = ImageWeighting(split, seed=0)
    for done in (3, 6):
        seldom.note(done, [done / 100] * 4)
    assert [epoch_of(seldom, epoch) for epoch in (6, 7, 8, 9)] == [3, 6, 6, 6]


def test_images_of_what_is_found_are_drawn_less(split: PackedSplit) -> None:
    def share_with_class_0(weighting: ImageWeighting) -> float:
        drawn = weighting.draw(5, range(400))[:, 0]
        return float(np.mean([(split.labels(sample)[:, 0] == 0).any() for sample in drawn.tolist()]))

    lost, found = ImageWeighting(split, 0), ImageWeighting(split, 0)
    lost.note(4, [0.0, 0.9, 0.9, 0.9])
    found.note(4, [0.99, 0.0, 0.0, 0.0])
    assert share_with_class_0(lost) > share_with_class_0(found) + 0.2


@pytest.mark.parametrize(
    ("words", "batches", "copied_ahead", "says"),
    [
        (["--loader.order", "block"], 100, False, "needs loader.order exact, not block"),
        (["--augment.partners", "recent"], 100, False, "needs augment.partners any, not recent"),
        (["--train.batch", "16"], 5, False, "epochs of at least 6 batches"),
        (["--train.batch", "64"], 2, False, "epochs of at least 3 batches"),
        (["--train.batch", "16"], 7, True, "epochs of at least 8 batches"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(
    words: list[str], batches: int, copied_ahead: bool, says: str
) -> None:
    config = read_config(None, ["--train.image_weighting", "true", *words])
    schedule = TrainingSchedule(OptimizerConfig(), 3, batches, config.train.batch)
    with pytest.raises(UsageError, match=says):
        check_image_weighting(config, schedule, copied_ahead=copied_ahead)
    check_image_weighting(read_config(None, words), schedule, copied_ahead=copied_ahead)


@pytest.mark.parametrize(("batches", "copied_ahead"), [(6, False), (8, True)])
def test_an_epoch_that_is_long_enough_is_accepted(batches: int, copied_ahead: bool) -> None:
    config = read_config(None, ["--train.image_weighting", "true", "--train.batch", "16"])
    schedule = TrainingSchedule(OptimizerConfig(), 3, batches, 16)
    check_image_weighting(config, schedule, copied_ahead=copied_ahead)
