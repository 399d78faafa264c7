"""Model descriptions in YOLOv5's YAML format: reading and checking."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hvdyolo.models.shipped import HINT, shipped_names, shipped_text
from hvdyolo.utils.errors import UsageError

_KEYS = ("depth_multiple", "width_multiple", "anchors", "backbone", "head")

# Beyond any network: a slip of the keyboard, or a file that is meant to exhaust memory.
_MOST_ROWS = 1000
_MOST_REPEATS = 100
_MOST_ANCHORS = 100
_LARGEST = 1e9


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
        anchors: widths and heights in pixels, alternating, one sequence a level; or how many a level are to
            be fitted to the data.
        rows: backbone and head as one list; the last one is the detection head.
    """

    name: str
    depth_multiple: float
    width_multiple: float
    anchors: tuple[tuple[float, ...], ...] | int
    rows: tuple[Row, ...]


def read_description(name: str | Path) -> dict[str, Any]:
    """The YAML mapping of a shipped name or of a file.

    Raises:
        UsageError: there is none, or it is not YAML.
    """
    shipped = shipped_text(str(name))
    if shipped is not None:
        text, depth, width = shipped
        return {**_read_yaml(text, str(name)), "depth_multiple": depth, "width_multiple": width}
    if not Path(name).is_file():
        raise UsageError(
            f"There is no model description or file '{name}'{nearest(str(name), shipped_names())}; {HINT}."
        )
    return _read_yaml(_read_text(Path(name)), str(name))


def _read_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date or a number that is none, too
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{name} is not a model description: it must be a mapping with backbone and head.")
    return known_keys(values, name)


def known_keys(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those of ``values`` that describe a network.

    Raises:
        UsageError: another one would change the network, and cannot be followed.
    """
    activation = values.get("activation", "nn.SiLU()")
    if activation not in ("nn.SiLU()", "nn.SiLU(inplace=True)"):
        raise UsageError(
            f"Model description {name}: 'activation' {activation} is not supported; leave the key out, and "
            "every Conv has nn.SiLU()."
        )
    # Anything else in the file could not be stored with the weights (YAML has dates, for one).
    return {key: values[key] for key in ("nc", *_KEYS) if key in values}


def parse_description(values: dict[str, Any], name: str) -> Description:
    """Check ``values`` and give them types.

    Raises:
        UsageError: names the key or row that does not fit.
    """
    for key in _KEYS:
        if key not in values:
            raise UsageError(f"Model description {name} has no '{key}'.")
    for key in ("depth_multiple", "width_multiple"):
        if not _is_number(values[key]) or values[key] <= 0:
            raise UsageError(
                f"Model description {name}: '{key}' must be a number above 0 and below {_LARGEST:g}, not "
                f"{values[key]!r}."
            )
    for key in ("backbone", "head"):
        if not isinstance(values[key], list) or not values[key]:
            raise UsageError(f"Model description {name}: '{key}' must be a list of rows.")
    rows = [*values["backbone"], *values["head"]]
    if len(rows) > _MOST_ROWS:
        raise UsageError(
            f"Model description {name} has {len(rows)} rows; a network has at most {_MOST_ROWS}."
        )
    return Description(
        name=name,
        depth_multiple=float(values["depth_multiple"]),
        width_multiple=float(values["width_multiple"]),
        anchors=_parse_anchors(values["anchors"], name),
        rows=tuple(_parse_row(row, number, name) for number, row in enumerate(rows)),
    )


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A question to put behind an unknown word, or nothing."""
    close = difflib.get_close_matches(word, candidates, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a model description: {error}.") from None


def _parse_anchors(anchors: Any, name: str) -> tuple[tuple[float, ...], ...] | int:
    if type(anchors) is int and 1 <= anchors <= _MOST_ANCHORS:
        return anchors
    if not isinstance(anchors, list) or not all(_is_anchor_level(level) for level in anchors):
        raise UsageError(
            f"Model description {name}: 'anchors' must be a list of levels, each widths and heights in turn, "
            "in pixels, or their number a level, such as 3."
        )
    if len({len(level) for level in anchors}) != 1:
        raise UsageError(f"Model description {name}: every level must have as many anchors.")
    return tuple(tuple(map(float, level)) for level in anchors)


def _is_anchor_level(level: Any) -> bool:
    return (
        isinstance(level, list)
        and len(level) > 0
        and len(level) % 2 == 0
        and all(_is_number(value) and value > 0 for value in level)
    )


def _is_number(value: Any) -> bool:
    # Bounds and not math.isfinite, which fails at integers that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _parse_row(row: Any, number: int, name: str) -> Row:
    where = f"Model description {name}, row {number}"
    if not (
        isinstance(row, list)
        and len(row) == 4
        and type(row[1]) is int
        and isinstance(row[2], str)
        and isinstance(row[3], list)
    ):
        raise UsageError(f"{where}: {row} is not [from, repeats, module, args].")
    if not 1 <= row[1] <= _MOST_REPEATS:
        raise UsageError(
            f"{where}: a module is repeated at least once and at most {_MOST_REPEATS} times, not {row[1]}."
        )
    for value in row[3]:
        if not isinstance(value, (bool, int, float, str, list, type(None))):
            raise UsageError(f"{where}: {value!r} is neither a number nor a word.")
    sources = row[0] if isinstance(row[0], list) else [row[0]]
    if not sources:
        raise UsageError(f"{where}: 'from' names no row.")
    for source in sources:
        if type(source) is not int or not (-number <= source < number or (source, number) == (-1, 0)):
            raise UsageError(f"{where}: there is no row {source} before it.")
    return Row(
        # Negative numbers count back from this row; -1 stays, also for row 0, whose input is the image.
        sources=tuple(source if source == -1 or source >= 0 else number + source for source in sources),
        repeats=row[1],
        module=row[2],
        # YAML has null; the published format also writes None and nothing else that needs a meaning.
        arguments=tuple(None if value == "None" else value for value in row[3]),
    )
