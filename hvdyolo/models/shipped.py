"""The shipped networks: a name is a scale and a layout, as in ``yolov5s``, ``yolov5s6`` or ``yolov5s-p2``."""

from collections.abc import Iterator
from importlib.resources import files

# Factors of depth (repeats) and of width (channels).
_SCALES = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}

# What follows the scale in a name, and the file in descriptions/.
_LAYOUTS = {
    "": "p5",
    "6": "p6",
    "-p2": "p2",
    "-p34": "p34",
    "-p6": "p6",
    "-p7": "p7",
    "-fpn": "fpn",
    "-panet": "p5",  # P5's neck is a path aggregation network
    "-bifpn": "bifpn",
    "-bifpn-concat": "bifpn-concat",
    "-ghost": "ghost",
    "-transformer": "transformer",
}

HINT = (
    "names are yolov5n, yolov5s, yolov5m, yolov5l and yolov5x, with nothing or one of "
    f"{', '.join(ending for ending in _LAYOUTS if ending)} behind it"
)
"""What a message says of the names, which are too many to list."""


def shipped_names() -> list[str]:
    """All names, each scale with each layout."""
    return [f"yolov5{scale}{ending}" for scale, ending in _combinations()]


def shipped_text(name: str) -> tuple[str, float, float] | None:
    """The YAML text of the layout that ``name`` means, its depth and its width; none if it is no name."""
    for scale, ending in _combinations():
        if name == f"yolov5{scale}{ending}":
            file = files("hvdyolo.models") / "descriptions" / f"{_LAYOUTS[ending]}.yaml"
            return file.read_text(encoding="utf-8"), *_SCALES[scale]
    return None


def _combinations() -> Iterator[tuple[str, str]]:
    return ((scale, ending) for ending in _LAYOUTS for scale in _SCALES)
