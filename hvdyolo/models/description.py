"""Model descriptions in YOLOv5's YAML format: reading and checking."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hvdyolo.utils.errors import UsageError


@dataclass(frozen=True)
class Row:
    """One row: ``[from, repeats, module, arguments]``.

    Attributes:
        sources: rows whose outputs are the inputs; -1 is the row before.
    """

    sources: tuple[int, ...]
    repeats: int
    module: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Description:
    """A network as its YAML file describes it.

    Attributes:
        name: what messages call it.
        anchors: widths and heights in pixels, alternating, one sequence a level.
        rows: backbone and head as one list; the last one is the detection head.
    """

    name: str
    depth_multiple: float
    width_multiple: float
    anchors: tuple[tuple[float, ...], ...]
    rows: tuple[Row, ...]


def shipped_descriptions() -> list[str]:
    """Names that :func:`read_description` knows."""
    entries = (files("hvdyolo.models") / "descriptions").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def read_description(name: str | Path) -> dict[str, Any]:
    """The YAML mapping of a shipped description or of a file.

    Raises:
        UsageError: there is none, or it is not YAML.
    """
    if str(name) in shipped_descriptions():
        text = (files("hvdyolo.models") / "descriptions" / f"{name}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        names = ", ".join(shipped_descriptions())
        raise UsageError(f"There is no model description or file '{name}'; descriptions are {names}.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{name} is not a model description: it must be a mapping with backbone and head.")
    return values


def parse_description(values: dict[str, Any], name: str) -> Description:
    """Check ``values`` and give them types.

    Raises:
        UsageError: names the key or row that does not fit.
    """
    for key in ("depth_multiple", "width_multiple", "anchors", "backbone", "head"):
        if key not in values:
            raise UsageError(f"Model description {name} has no '{key}'.")
    rows = [*values["backbone"], *values["head"]]
    anchors = values["anchors"]
    if not isinstance(anchors, list) or any(
        not isinstance(level, list) or not level or len(level) % 2 for level in anchors
    ):
        raise UsageError(
            f"Model description {name}: 'anchors' must be a list of levels, each widths and heights in turn."
        )
    if len({len(level) for level in anchors}) != 1:
        raise UsageError(f"Model description {name}: every level must have as many anchors.")
    return Description(
        name=name,
        depth_multiple=float(values["depth_multiple"]),
        width_multiple=float(values["width_multiple"]),
        anchors=tuple(tuple(map(float, level)) for level in anchors),
        rows=tuple(_parse_row(row, number, name) for number, row in enumerate(rows)),
    )


def _parse_row(row: Any, number: int, name: str) -> Row:
    if not (
        isinstance(row, Sequence)
        and len(row) == 4
        and isinstance(row[1], int)
        and isinstance(row[2], str)
        and isinstance(row[3], list)
    ):
        raise UsageError(
            f"Model description {name}, row {number}: {row} is not [from, repeats, module, args]."
        )
    sources = row[0] if isinstance(row[0], list) else [row[0]]
    for source in sources:
        if not isinstance(source, int) or not (-number <= source < number or (source, number) == (-1, 0)):
            raise UsageError(f"Model description {name}, row {number}: there is no row {source} before it.")
    return Row(
        # Negative numbers count back from this row; -1 stays, also for the first row, whose input is the image.
        sources=tuple(source if source == -1 or source >= 0 else number + source for source in sources),
        repeats=row[1],
        module=row[2],
        # YAML has null; the published format also writes None and nothing else that needs a meaning.
        arguments=tuple(None if value == "None" else value for value in row[3]),
    )
