"""Reading settings: defaults, then recipes, then ``--section.key VALUE``.

Every mistake is a :class:`UsageError` of one sentence that names the key, what is valid and the nearest
match.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hvdyolo.config import Config
from hvdyolo.utils.errors import UsageError

_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("train.epochs", "at least 1", lambda v: v >= 1),
    ("train.batch", "at least 1", lambda v: v >= 1),
    ("train.seed", "0 … 2^63 - 1", lambda v: 0 <= v < 2**63),
    ("train.eval_every", "at least 1", lambda v: v >= 1),
    ("train.checkpoint_every", "at least 1", lambda v: v >= 1),
    ("train.keep_checkpoints", "at least 1", lambda v: v >= 1),
    ("train.log_every", "at least 1", lambda v: v >= 1),
    ("train.patience", "at least 1", lambda v: v is None or v >= 1),
    ("loader.image_size", "at least 32", lambda v: v >= 32),
    ("loader.workers", "0 … 1024", lambda v: v is None or 0 <= v <= 1024),
    ("loader.prefetch", "at least 1", lambda v: v >= 1),
    ("loader.max_pixels", "at least 1", lambda v: v >= 1),
    ("augment.mosaic", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.mosaic_9", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.degrees", "0 … 180", lambda v: 0 <= v <= 180),
    ("augment.translate", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.scale", "0 or more and below 1", lambda v: 0 <= v < 1),
    ("augment.shear", "0 … 45", lambda v: 0 <= v <= 45),
    # More would make the part of the canvas that shows several times as large as the output.
    ("augment.perspective", "0 … 0.25", lambda v: 0 <= v <= 0.25),
    ("augment.mixup", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.copy_paste", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.cutout", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.multi_scale", "0 … 0.5", lambda v: 0 <= v <= 0.5),
    ("augment.flip_left_right", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.flip_up_down", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.hue", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.saturation", "0 … 1", lambda v: 0 <= v <= 1),
    ("augment.value", "0 … 1", lambda v: 0 <= v <= 1),
    ("loss.box", "0 or more", lambda v: v >= 0),
    ("loss.objectness", "0 or more", lambda v: v >= 0),
    ("loss.classification", "0 or more", lambda v: v >= 0),
    # At 0 the network would learn to find nothing.
    ("loss.positive_objectness", "above 0", lambda v: v > 0),
    ("loss.positive_class", "above 0", lambda v: v > 0),
    ("loss.anchor_threshold", "above 1", lambda v: v > 1),
    ("loss.label_smoothing", "0 or more and below 1", lambda v: 0 <= v < 1),
    ("loss.focal_gamma", "0 … 10", lambda v: 0 <= v <= 10),
    ("optimizer.lr", "above 0", lambda v: v > 0),
    ("optimizer.lr_final", "0 … 1", lambda v: 0 <= v <= 1),
    ("optimizer.warmup_epochs", "0 or more", lambda v: v >= 0),
    ("optimizer.warmup_min_batches", "0 or more", lambda v: v >= 0),
    ("optimizer.warmup_bias_lr", "0 or more", lambda v: v >= 0),
    ("optimizer.momentum", "above 0 and below 1", lambda v: 0 < v < 1),
    ("optimizer.warmup_momentum", "0 or more and below 1", lambda v: 0 <= v < 1),
    ("optimizer.weight_decay", "0 or more", lambda v: v >= 0),
    ("optimizer.trust_coefficient", "above 0", lambda v: v > 0),
    ("optimizer.nominal_batch", "at least 1", lambda v: v >= 1),
    ("optimizer.clip_norm", "above 0", lambda v: v > 0),
    ("optimizer.ema_decay", "0 or more and below 1", lambda v: 0 <= v < 1),
    ("optimizer.ema_ramp", "above 0", lambda v: v > 0),
    ("evaluation.image_size", "at least 32", lambda v: v is None or v >= 32),
    ("evaluation.batch", "at least 1", lambda v: v >= 1),
    ("evaluation.confidence", "0 … 1", lambda v: 0 <= v <= 1),
    ("evaluation.iou", "0 … 1", lambda v: 0 <= v <= 1),
    ("evaluation.max_boxes", "at least 1", lambda v: v >= 1),
    ("detect.image_size", "at least 32", lambda v: v is None or v >= 32),
    ("detect.batch", "at least 1", lambda v: v >= 1),
    ("detect.chunk", "at least 1", lambda v: v >= 1),
    ("detect.confidence", "0 … 1", lambda v: 0 <= v <= 1),
    ("detect.iou", "0 … 1", lambda v: 0 <= v <= 1),
    ("detect.max_boxes", "at least 1", lambda v: v >= 1),
    ("detect.pictures", "0 or more", lambda v: v >= 0),
    ("detect.max_pixels", "at least 1", lambda v: v >= 1),
    ("detect.claim_expiry", "above 0", lambda v: v > 0),
    ("distributed.cycle_time", "above 0", lambda v: v is None or v > 0),
    ("distributed.threads", "1 … 1024", lambda v: v is None or 1 <= v <= 1024),
    ("watchdog.timeout", "above 0", lambda v: v > 0),
    ("watchdog.start_timeout", "above 0", lambda v: v > 0),
    # The counter of a lock moves every 5 seconds: it must be seen to stand still.
    ("watchdog.lock_expiry", "at least 10", lambda v: v >= 10),
)


# Larger whole numbers are no number of anything, and more than many functions of C take.
_MOST, _MOST_OF_LARGE = 2**31 - 1, 2**63 - 1
_LARGE = ("train.seed", "loader.max_pixels", "detect.max_pixels")


def read_config(recipes: str | Sequence[str] | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a command.

    Args:
        recipes: name of a shipped recipe or path of a YAML file, or several, of which later ones win; the
            defaults if ``None``.
        overrides: ``--section.key VALUE`` or ``--section.key=VALUE`` words, later ones win.

    Raises:
        UsageError: unknown recipe or key, or a value of the wrong type or out of range.
    """
    values: dict[str, Any] = {}
    for recipe in [recipes] if isinstance(recipes, str) else recipes or ():
        values.update(_flatten(_read_recipe(recipe), recipe))
    values.update(_split_overrides(overrides))
    return config_from_values(values)


def config_from_values(values: Mapping[str, Any]) -> Config:
    """The defaults changed by ``values``, a mapping of ``section.key`` to strings or YAML values.

    Raises:
        UsageError: unknown key, or a value of the wrong type or out of range.
    """
    types = _key_types()
    for key in values:
        if key not in types:
            raise UsageError(f"Unknown setting '{key}'{_nearest(key, types)}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    arguments = [f"--{key}={'null' if value is None else value}" for key, value in values.items()]
    try:
        config: Config = Config(**vars(parser.instantiate(parser.parse_args(arguments))))
    except ArgumentError as error:
        found = re.search(r'key "([^"]+)"', str(error))
        key = found.group(1) if found else next(iter(values))
        raise UsageError(f"Setting '{key}' takes {_describe(types[key])}, not {values[key]!r}.") from None
    check_ranges(config)
    return config


def read_saved_config(path: Path) -> Config:
    """The configuration in a run directory's ``config.yaml``."""
    return config_from_values(_flatten(yaml.safe_load(path.read_text()), str(path)))


def config_as_yaml(config: Config) -> str:
    """The whole configuration as YAML that :func:`read_saved_config` and ``--config`` accept."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def config_values(config: Config) -> dict[str, Any]:
    """The configuration as ``section.key`` → value."""
    return _flatten(dataclasses.asdict(config), "")


def check_ranges(config: Config) -> None:
    """Raise a :class:`UsageError` that names the first number out of its range."""
    values = config_values(config)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"Setting '{key}' must be a finite number, not {value}.")
        most = _MOST_OF_LARGE if key in _LARGE else _MOST
        if isinstance(value, int) and value > most:
            raise UsageError(f"Setting '{key}' must be at most {most}, not {value}.")
    for key, valid, holds in _RULES:
        if not holds(values[key]):
            raise UsageError(f"Setting '{key}' must be {valid}, not {values[key]}.")


def shipped_recipes() -> list[str]:
    """Names that ``--config`` accepts."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in (files("hvdyolo") / "recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def _read_recipe(recipe: str) -> dict[str, Any]:
    if recipe in shipped_recipes():
        text = (files("hvdyolo") / "recipes" / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        text = Path(recipe).read_text()
    else:
        names = shipped_recipes()
        raise UsageError(
            f"No recipe or file '{recipe}'{_nearest(recipe, names)}; recipes are {', '.join(names)}."
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{recipe} is not valid YAML: {' '.join(str(error).split())}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{recipe} must hold sections with keys, such as 'train:' with 'epochs: 60'.")
    return values


def _flatten(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, content in values.items():
        if not isinstance(content, Mapping):
            key = _nearest(section, [key.split(".")[1] for key in _key_types()])
            raise UsageError(f"'{section}' in {source} is not a section with keys{key}.")
        flat.update({f"{section}.{key}": value for key, value in content.items()})
    return flat


def _split_overrides(words: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UsageError(f"Unexpected argument '{word}'; settings are given as --section.key VALUE.")
        if "." not in key:
            raise UsageError(f"Unknown option '{word}'{_nearest(key, _key_types(), '--')}.")
        if not equals:
            if not remaining:
                raise UsageError(f"Setting '{key}' needs a value: --{key} VALUE.")
            value = remaining.pop(0)
        values[key] = value
    return values


def _key_types() -> dict[str, Any]:
    return {
        f"{section}.{key}": kind
        for section, section_type in typing.get_type_hints(Config).items()
        for key, kind in typing.get_type_hints(section_type).items()
    }


def _nearest(word: str, candidates: typing.Iterable[str], prefix: str = "") -> str:
    """`` (did you mean 'x'?)`` for the most similar candidate, or nothing."""
    names = list(candidates)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close and "." not in word:
        by_last = {name.rsplit(".", 1)[-1]: name for name in names}
        close = [by_last[key] for key in difflib.get_close_matches(word, by_last, n=1, cutoff=0.6)]
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""


def _describe(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in words:
        return words[kind]
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    return " or ".join([*map(_describe, parts), "null"])
