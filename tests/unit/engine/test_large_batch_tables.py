"""Every number and rule in the tables of docs/training.md on large batches, against what the code gives."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.schedule import TrainingSchedule

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"
EPOCHS, IMAGES = 300, 118_287

SGD, LARS = OptimizerConfig(), OptimizerConfig(name="lars")
ADAMW = OptimizerConfig(name="adamw", lr=0.001, weight_decay=0.05)


def table(corner: str) -> dict[str, dict[str, str]]:
    """The table whose first cell is ``corner``: by row and column, the text of its cells."""
    lines = PAGE.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {corner} |"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    header, _, *body = rows
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


def schedule(settings: OptimizerConfig, batch: int) -> TrainingSchedule:
    return TrainingSchedule(settings, EPOCHS, -(-IMAGES // batch), batch)


def same_for_both(value: Callable[[OptimizerConfig], float]) -> Callable[[int], float]:
    """Of SGD and LARS, whose row is one."""

    def of(batch: int) -> float:
        sgd, lars = (value(schedule(settings, batch).resolved) for settings in (SGD, LARS))
        assert sgd == lars
        return sgd

    return of


def images_of_a_step(batch: int) -> int:
    return batch * schedule(SGD, batch).accumulation


def lars_share(batch: int) -> float:
    settings = schedule(LARS, batch).resolved
    return settings.lr * settings.trust_coefficient


ROWS: dict[str, Callable[[int], float]] = {
    "k": lambda batch: max(batch / SGD.nominal_batch, 1),
    "batches a step": lambda batch: schedule(SGD, batch).accumulation,
    "batches an epoch": lambda batch: schedule(SGD, batch).batches,
    "warm-up, epochs": lambda batch: schedule(SGD, batch).resolved.warmup_epochs,
    "warm-up, batches": lambda batch: schedule(SGD, batch).warmup_batches,
    "clip norm": lambda batch: schedule(SGD, batch).resolved.clip_norm,
    "SGD, lr": lambda batch: schedule(SGD, batch).resolved.lr,
    "the same for a mean over images": lambda batch: (
        schedule(SGD, batch).resolved.lr * images_of_a_step(batch)
    ),
    "SGD and LARS, decay": same_for_both(lambda settings: settings.weight_decay),
    "SGD and LARS, first lr of biases": same_for_both(lambda settings: settings.warmup_bias_lr),
    "AdamW, lr": lambda batch: schedule(ADAMW, batch).resolved.lr,
    "AdamW, decay": lambda batch: schedule(ADAMW, batch).resolved.weight_decay,
    "LARS, trust coefficient": lambda batch: schedule(LARS, batch).resolved.trust_coefficient,
    "LARS, change of a matrix a step, before momentum": lars_share,
    "moving average, decay": lambda batch: schedule(SGD, batch).resolved.ema_decay,
    "moving average, ramp, steps": lambda batch: schedule(SGD, batch).resolved.ema_ramp,
}


def assert_printed(text: str, value: float) -> None:
    """``text`` is ``value`` rounded to the digits that it shows."""
    number, percent = text.replace(",", ""), 1
    if number.endswith("%"):
        number, percent = number.removesuffix("%").strip(), 100
    shown = Decimal(number)
    half_a_digit = 0.5 * 10.0 ** int(shown.as_tuple().exponent)
    assert abs(float(shown) - value * percent) <= half_a_digit * (1 + 1e-6), f"{text}, but {value:g}"


@pytest.mark.parametrize("row", ROWS)
def test_each_number_is_what_the_rule_gives(row: str) -> None:
    cells = table("`train.batch`")[row]
    assert list(cells) == ["16", "64", "256", "1024", "4096"]
    for batch, text in cells.items():
        assert_printed(text, ROWS[row](int(batch)))


def test_no_row_is_left_out() -> None:
    assert list(table("`train.batch`")) == list(ROWS)


def test_rows_that_are_not_named_after_an_optimizer_hold_for_all() -> None:
    for batch in (16, 64, 256, 1024, 4096):
        sgd, adamw, lars = (schedule(settings, batch) for settings in (SGD, ADAMW, LARS))
        for other in (adamw, lars):
            assert (other.accumulation, other.warmup_batches) == (sgd.accumulation, sgd.warmup_batches)
            for key in ("warmup_epochs", "clip_norm", "ema_decay", "ema_ramp"):
                assert getattr(other.resolved, key) == getattr(sgd.resolved, key)


# What a cell says, and what it makes of a setting of ``x`` at k = 9.
RULES: dict[str, Callable[[float], float]] = {
    "as it is": lambda x: x,
    "× √k": lambda x: 3 * x,
    "× k": lambda x: 9 * x,
    "/ k": lambda x: x / 9,
    "to the power of k": lambda x: x**9,
    "0": lambda x: 0.0,
}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_each_rule_is_the_codes(name: str) -> None:
    # Two epochs times three are no fifth of three hundred.
    settings = replace(
        OptimizerConfig(), name=name, lr=0.013, weight_decay=7e-4, clip_norm=9.1, ema_decay=0.9997,
        warmup_epochs=2.0, warmup_bias_lr=0.11, ema_ramp=1900.0, trust_coefficient=0.12,
    )  # fmt: skip
    found = schedule(settings, 9 * settings.nominal_batch).resolved
    ruled = {}
    for key, cells in table("setting").items():
        if cells[name]:
            # What comes after a comma is about all of them.
            ruled[key] = RULES[cells[name].partition(",")[0]](getattr(settings, key))
    assert ruled == pytest.approx({key: getattr(found, key) for key in ruled})
    # What no row names stays as it is, but what only LARS looks at.
    left = [key for key in vars(settings) if key not in ruled and key != "trust_coefficient"]
    assert [getattr(found, key) for key in left] == [getattr(settings, key) for key in left]
