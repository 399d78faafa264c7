"""Where settings come from, and what is said when they are wrong."""

import typing
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import yaml

from hvdyolo.config import Config
from hvdyolo.settings import (
    check_ranges,
    config_as_yaml,
    config_values,
    read_config,
    read_saved_config,
    shipped_recipes,
)
from hvdyolo.utils.errors import UsageError


def test_no_recipe_gives_the_defaults() -> None:
    assert read_config(None) == Config()


PRESETS = ("low", "med", "high")


def values_in(recipe: str) -> dict[str, Any]:
    """What a shipped recipe says."""
    path = Path(__file__).parents[2] / "hvdyolo" / "recipes" / f"{recipe}.yaml"
    sections = yaml.safe_load(path.read_text())
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


@pytest.mark.parametrize("recipe", [name for name in shipped_recipes() if name not in PRESETS])
def test_shipped_recipes_are_valid_and_hold_only_differences(recipe: str) -> None:
    changed = config_values(read_config(recipe))
    defaults = config_values(Config())
    for key in values_in(recipe):
        assert changed[key] != defaults[key], key


def test_presets_replace_each_other() -> None:
    assert read_config("low") == Config()
    stated = [set(values_in(preset)) for preset in PRESETS]
    assert stated[0] == stated[1] == stated[2]
    for preset in PRESETS:
        assert read_config(["high", "med", "low", preset]) == read_config(preset)
    high = config_values(read_config("high"))
    differing = {key: value for key, value in high.items() if value != config_values(Config())[key]}
    assert differing == {
        "augment.mixup": 0.1,
        "augment.scale": 0.9,
        "loss.classification": 0.3,
        "loss.objectness": 0.7,
        "optimizer.lr_final": 0.1,
    }


def test_of_several_recipes_the_later_ones_win(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("augment:\n  scale: 0.7\ntrain:\n  epochs: 7\n")
    config = read_config(["yolov5n_bccd", "high", str(recipe)], ["--train.epochs", "9"])
    assert (config.model.description, config.loader.image_size) == ("yolov5n", 320)
    assert (config.augment.mixup, config.augment.scale, config.train.epochs) == (0.1, 0.7, 9)
    assert read_config([str(recipe), "high"]).augment.scale == 0.9
    with pytest.raises(UsageError, match="did you mean 'high'"):
        read_config(["low", "hihg"])


def test_overrides_win_over_the_recipe_and_the_last_one_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train:\n  epochs: 7\n  batch: 8\n")
    config = read_config(str(recipe), ["--train.epochs=8", "--train.epochs", "9", "--loader.workers", "null"])
    assert (config.train.epochs, config.train.batch, config.loader.workers) == (9, 8, None)


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optimizer:\n  lr: 1e-3\n")  # text to YAML 1.1
    assert read_config(str(recipe)).optimizer.lr == 1e-3


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = read_config("yolov5n_bccd", ["--model.weights", "/a path/with: colon.safetensors"])
    path = tmp_path / "config.yaml"
    path.write_text(config_as_yaml(config))
    assert read_saved_config(path) == config


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optimizer.lrr", "1"], "'optimizer.lrr' (did you mean 'optimizer.lr'?)"),
        (["--epochs", "3"], "did you mean '--train.epochs'?"),
        (["--optimizer.lr", "fast"], "'optimizer.lr' takes a number, not 'fast'"),
        (["--train.epochs", "1.5"], "'train.epochs' takes a whole number"),
        (["--optimizer.schedule", "cos"], "one of linear, cosine"),
        (["--loader.order", "blocks"], "one of exact, block"),
        (["--loader.workers", "1025"], "must be 0 … 1024, not 1025"),
        (["--distributed.threads", "99999999999999999999"], "must be at most 2147483647"),
        (["--train.batch", "99999999999999999999"], "must be at most 2147483647"),
        (["--loader.max_pixels", "99999999999999999999"], "must be at most 9223372036854775807"),
        (["--loader.workers", "many"], "a whole number or null"),
        (["--train.batch", "0"], "'train.batch' must be at least 1, not 0"),
        (["--augment.perspective", "0.3"], "'augment.perspective' must be 0 … 0.25"),
        (["--augment.multi_scale", "1"], "'augment.multi_scale' must be 0 … 0.5"),
        (["--augment.mosaic_9", "-1"], "'augment.mosaic_9' must be 0 … 1"),
        (["--optimizer.ema_ramp", "0"], "'optimizer.ema_ramp' must be above 0, not 0"),
        (["--loss.box", ".inf"], "'loss.box' must be a finite number, not inf"),
        (["--optimizer.name", "adam"], "one of sgd, adamw, lars"),
        (["--optimizer.momentum", "1"], "'optimizer.momentum' must be above 0 and below 1"),
        (["--loss.focal_gamma", "-1"], "'loss.focal_gamma' must be 0 … 10"),
        (["--augment.autoaugment", "v4"], "one of v0, v1, v2, v3 or null"),
        (["--train.batch"], "needs a value"),
        (["train.batch", "3"], "Unexpected argument 'train.batch'"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_way_out(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_config(None, words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(key: str, value: Any) -> Config:
    """The defaults but for one: reading each from words takes a tenth of a second."""
    section, name = key.split(".")
    return replace(Config(), **{section: replace(getattr(Config(), section), **{name: value})})


def numeric_keys() -> list[str]:
    return [
        f"{section}.{key}"
        for section, keys in typing.get_type_hints(Config).items()
        for key, kind in typing.get_type_hints(keys).items()
        if {kind, *typing.get_args(kind)} & {int, float}
    ]


@pytest.mark.parametrize("key", numeric_keys())
def test_no_number_is_below_all_sense(key: str) -> None:
    """A field without a range would be found when training divides by it, or never."""
    with pytest.raises(UsageError, match=rf"'{key}' must be .*, not -1000000"):
        check_ranges(changed(key, -1000000))


def test_all_fields_that_are_numbers_are_tried() -> None:
    values = config_values(Config())
    numbers = {key for key, value in values.items() if type(value) in (int, float)}
    assert set(numeric_keys()) == numbers | {
        "train.patience", "loader.workers", "evaluation.image_size", "detect.image_size",
        "distributed.cycle_time", "distributed.threads",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "lowest", "highest", "refused"),
    [
        ("optimizer.ema_ramp", 1e-9, 1e9, [0]),
        ("optimizer.ema_decay", 0, 0.999999, [-1e-9, 1, 2]),
        ("optimizer.lr_final", 0, 1, [-1, 1.01]),
        ("optimizer.warmup_epochs", 0, 1e6, [-1, inf]),
        ("optimizer.warmup_min_batches", 0, 10**9, [-1]),
        ("optimizer.warmup_bias_lr", 0, 1, [-3, nan]),
        ("loss.box", 0, 100, [-1, nan, inf]),
        ("loss.objectness", 0, 100, [-1, nan]),
        ("loss.classification", 0, 100, [-1, -inf]),
        ("loss.positive_class", 1e-9, 100, [-1, 0]),
        ("loss.positive_objectness", 1e-9, 100, [-1, 0]),
        ("loader.max_pixels", 1, 10**10, [0]),
        ("detect.max_pixels", 1, 10**10, [0]),
        ("detect.pictures", 0, 10**6, [-1]),
        ("detect.claim_expiry", 0.1, 1e6, [0]),
        ("watchdog.lock_expiry", 10, 1e6, [0, 5]),
        ("evaluation.image_size", 32, 10**4, [0]),
        ("detect.image_size", 32, 10**4, [0]),
    ],
)
def test_ends_of_ranges(key: str, lowest: float, highest: float, refused: list[Any]) -> None:
    for value in (lowest, highest):
        check_ranges(changed(key, value))
    for value in refused:
        with pytest.raises(UsageError, match=rf"'{key}' must be"):
            check_ranges(changed(key, value))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'yolov5n_bccd'.*recipes are"):
        read_config("yolov5n_bcd")


def test_an_unknown_key_in_a_recipe_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train:\n  epoch: 7\n")
    with pytest.raises(UsageError, match=r"'train.epoch' \(did you mean 'train.epochs'"):
        read_config(str(recipe))
    recipe.write_text("epochs: 7\n")
    with pytest.raises(UsageError, match="not a section"):
        read_config(str(recipe))
    recipe.write_text("train: [1, :\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_config(str(recipe))
