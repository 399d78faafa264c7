"""Class weights against numbers computed by hand, and what is said of bad ones."""

import numpy as np
import pytest

from hvdyolo.objective.class_weights import class_weights
from hvdyolo.utils.errors import UsageError


def weights(setting: str, *counts: int) -> list[float]:
    found = class_weights(setting, np.array(counts))
    assert found is not None
    return found.tolist()


def test_rules_go_by_boxes_and_have_the_mean_one() -> None:
    # 1/100 : 1/25 : 1/4 are 1 : 4 : 25, whose mean is 10; their roots 1 : 2 : 5, whose mean is 8/3.
    assert weights("inverse", 100, 25, 4) == pytest.approx([0.1, 0.4, 2.5])
    assert weights("inverse_sqrt", 100, 25, 4) == pytest.approx([3 / 8, 6 / 8, 15 / 8])


def test_classes_without_boxes_change_nothing_for_others() -> None:
    assert weights("inverse", 100, 0, 25, 4, 0) == pytest.approx([0.1, 1, 0.4, 2.5, 1])
    assert weights("inverse_sqrt", 0, 0) == [1, 1]


def test_numbers_are_taken_as_shares() -> None:
    assert weights("1, 2,5", 7, 7, 7) == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert class_weights(None, np.array([1, 2])) is None


@pytest.mark.parametrize(
    "setting", ["inverted", "1, 2", "1, 2, 0", "1, 2, inf", "1, 2, nan", "1 2 3", "", "1,,2"]
)
def test_what_is_no_weight_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="neither inverse nor inverse_sqrt nor 3 numbers above 0"):
        class_weights(setting, np.array([1, 1, 1]))
