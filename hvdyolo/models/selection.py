"""Choosing parameters of a model by row, by part of the network, or by a pattern of their names."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from hvdyolo.models.build import DetectionModel
from hvdyolo.utils.errors import UsageError

_ROWS = re.compile(r"(\d+)(?:-(\d+))?")


def select_parameters(model: DetectionModel, choice: str) -> list[str]:
    """Names of the parameters that ``choice`` means.

    Args:
        model: whose parameters.
        choice: ``7`` (a row), ``0-9`` (rows, both included), ``backbone``, ``neck``, ``head`` (the last row),
            or a pattern with ``*`` and ``?`` of names such as ``model.24.m.0.bias``.

    Raises:
        UsageError: it means none.
    """
    rows = _rows(model, choice)
    names = [
        name
        for name, _ in model.named_parameters()
        if (int(name.split(".")[1]) in rows if rows is not None else fnmatchcase(name, choice))
    ]
    if not names:
        raise UsageError(
            f"'{choice}' selects no parameter of this model; valid are rows such as 7 or 0-9 of its "
            f"{len(model.model)} (from 0), backbone, neck, head, and patterns such as model.24.* or *.bn.*."
        )
    return names


def split_choices(text: str) -> Iterator[str]:
    """The choices of a setting, which commas separate."""
    return (choice.strip() for choice in text.split(",") if choice.strip())


def _rows(model: DetectionModel, choice: str) -> range | None:
    """The rows that ``choice`` means, or none if it is a pattern."""
    last = len(model.model) - 1
    backbone = len(model.description["backbone"])
    parts = {"backbone": range(backbone), "neck": range(backbone, last), "head": range(last, last + 1)}
    if choice in parts:
        return parts[choice]
    found = _ROWS.fullmatch(choice)
    if found is None:
        return None
    first = int(found[1])
    return range(first, int(found[2] or first) + 1)
