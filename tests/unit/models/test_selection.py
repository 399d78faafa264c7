"""What words choose which parameters."""

import pytest
import torch

from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.models.selection import select_parameters, split_choices
from hvdyolo.utils.errors import UsageError


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    with torch.device("meta"):
        return build_model("yolov5n", 2)


def rows(names: list[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names}


PARAMETER_ROWS = set(range(25)) - {11, 12, 15, 16, 19, 22}  # up-sampling and joining learn nothing


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("7", {7}),
        ("0-2", {0, 1, 2}),
        ("10-13", {10, 13}),
        ("0-99", PARAMETER_ROWS),
        ("backbone", set(range(10))),
        ("neck", PARAMETER_ROWS & set(range(10, 24))),
        ("head", {24}),
        ("model.2*", PARAMETER_ROWS & {2, *range(20, 25)}),
        ("model.2.*", {2}),
    ],
)
def test_rows(model: DetectionModel, choice: str, expected: set[int]) -> None:
    names = select_parameters(model, choice)
    assert rows(names) == expected
    of_these_rows = [name for name, _ in model.named_parameters() if int(name.split(".")[1]) in expected]
    assert names == of_these_rows


def test_patterns(model: DetectionModel) -> None:
    assert select_parameters(model, "model.24.m.?.bias") == [f"model.24.m.{level}.bias" for level in range(3)]
    norms = select_parameters(model, "*.bn.*")
    assert {name.rsplit(".", 2)[1] for name in norms} == {"bn"}
    assert select_parameters(model, "model.0.conv.weight") == ["model.0.conv.weight"]


@pytest.mark.parametrize("choice", ["25", "11", "9-3", "spine", "model.24.*.gamma", "-1", "1-", "MODEL.0.*"])
def test_choices_of_nothing(model: DetectionModel, choice: str) -> None:
    with pytest.raises(UsageError, match="selects no parameter") as raised:
        select_parameters(model, choice)
    assert f"'{choice}'" in str(raised.value)
    assert "25 (from 0)" in str(raised.value)


def test_choices_are_separated_by_commas() -> None:
    assert list(split_choices(" 0-9, *.bn.*,,head ")) == ["0-9", "*.bn.*", "head"]
    assert list(split_choices("")) == []
