"""Accumulation, learning rates and momentum against numbers computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.config import OptimizerConfig
from hvdyolo.engine.schedule import StepRange, TrainingSchedule


def schedule(epochs: int = 10, batches: int = 50, batch: int = 16, **settings: object) -> TrainingSchedule:
    return TrainingSchedule(OptimizerConfig(**settings), epochs, batches, batch)  # type: ignore[arg-type]


def test_warmup_is_the_longer_of_epochs_and_batches() -> None:
    assert schedule(batches=50).warmup_batches == 150
    assert schedule(batches=13).warmup_batches == 100
    assert schedule(warmup_epochs=0.0).warmup_batches == 0


def test_warmup_of_large_batches_is_at_most_a_fifth_of_the_run() -> None:
    # 205 images for 60 epochs. In batches up to the nominal one as published, whatever is left after it.
    assert schedule(epochs=60, batches=13, batch=16).warmup_batches == 100
    assert schedule(epochs=60, batches=4, batch=64).warmup_batches == 100
    # A fifth of 120 batches: 3 epochs times the root of 2 are only 8.
    assert schedule(epochs=60, batches=2, batch=128).warmup_batches == 24
    assert schedule(epochs=60, batches=1, batch=205).warmup_batches == 12
    # Long enough for the published least; what is set in epochs stays, however short the run.
    assert schedule(epochs=300, batches=2, batch=128).warmup_batches == 100
    assert schedule(epochs=10, batches=2, batch=128).warmup_batches == 6
    assert schedule(epochs=10, batches=2, batch=128, warmup_epochs=0.0).warmup_batches == 0


def test_accumulation_reaches_the_nominal_batch() -> None:
    assert schedule(batch=16).accumulation == 4
    assert schedule(batch=24).accumulation == 3  # 64 / 24 = 2.67
    assert schedule(batch=256).accumulation == 1


def test_decay_is_scaled_to_the_images_of_a_step() -> None:
    assert schedule(batch=16).resolved.weight_decay == pytest.approx(5e-4)
    assert schedule(batch=24).resolved.weight_decay == pytest.approx(5e-4 * 72 / 64)
    assert schedule(batch=256).resolved.weight_decay == pytest.approx(5e-4 * 4)


def test_accumulation_ramps_over_warmup() -> None:
    # 1 at batch 0 to 4 at batch 100, linear: 1.5 rounds to 2 (half to even) at batch 50/3 = 16.67,
    # 2.5 is passed at batch 50, 3.5 at batch 83.3.
    steps = list(schedule(epochs=1, batches=200, batch=16, warmup_epochs=0.1).steps(0))
    starts = {step.passes: step.first for step in reversed(steps) if step.passes <= 4}
    assert starts == {1: 0, 2: 17, 3: 51, 4: 84}


def test_without_warmup_the_first_step_is_whole() -> None:
    assert next(schedule(warmup_epochs=0.0).steps(0)) == StepRange(0, 0, 4)


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    steps = list(schedule(batches=13, warmup_epochs=0.0).steps(4))
    assert steps == [
        StepRange(4, 0, 4), StepRange(4, 4, 4), StepRange(4, 8, 4), StepRange(4, 12, 1)
    ]  # fmt: skip


@given(
    batches=st.integers(1, 60),
    batch=st.integers(1, 200),
    epoch=st.integers(0, 9),
    warmup=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_steps_cover_every_batch_once_and_resume_anywhere(
    batches: int, batch: int, epoch: int, warmup: float
) -> None:
    plan = schedule(batches=batches, batch=batch, warmup_epochs=warmup)
    steps = list(plan.steps(epoch))
    covered = [number for step in steps for number in range(step.first, step.first + step.passes)]
    assert covered == list(range(batches))
    for position, step in enumerate(steps):
        assert list(plan.steps(epoch, step.first)) == steps[position:]


def test_rates_without_warmup_fall_by_epoch() -> None:
    plan = schedule(epochs=10, warmup_epochs=0.0)
    assert plan.rates(StepRange(0, 0, 1)).lr == pytest.approx(0.01)
    # Half-way: (1 - 0.5) * 0.99 + 0.01 = 0.505 of it.
    assert plan.rates(StepRange(5, 0, 1)).lr == pytest.approx(0.00505)
    assert plan.rates(StepRange(5, 49, 1)).lr == pytest.approx(0.00505)
    assert plan.rates(StepRange(5, 0, 1)).momentum == 0.937


def test_cosine_is_half_way_at_half_time_and_slow_at_first() -> None:
    plan = schedule(epochs=10, warmup_epochs=0.0, schedule="cosine")
    assert plan.rates(StepRange(5, 0, 1)).lr == pytest.approx(0.00505)
    # (1 - cos 0.1 pi) / 2 = 0.0244717: 0.01 * (1 - 0.99 * 0.0244717)
    assert plan.rates(StepRange(1, 0, 1)).lr == pytest.approx(0.01 * 0.975773, rel=1e-6)


def test_warmup_raises_lr_lowers_bias_lr_and_raises_momentum() -> None:
    plan = schedule(epochs=10, batches=50)  # warm-up of 150 batches
    first = plan.rates(StepRange(0, 0, 1))
    assert (first.lr, first.bias_lr, first.momentum) == (0.0, 0.1, 0.8)
    # Batch 75 is in epoch 1, whose lr is 0.01 * (0.9 * 0.99 + 0.01) = 0.00901.
    half = plan.rates(StepRange(1, 25, 1))
    assert half.lr == pytest.approx(0.00901 / 2)
    assert half.bias_lr == pytest.approx((0.1 + 0.00901) / 2)
    assert half.momentum == pytest.approx((0.8 + 0.937) / 2)
    after = plan.rates(StepRange(3, 1, 1))
    assert after.lr == after.bias_lr
    assert after.momentum == 0.937


def test_adamw_warms_its_biases_up_from_nothing() -> None:
    plan = schedule(epochs=10, batches=50, name="adamw")
    first = plan.rates(StepRange(0, 0, 1))
    assert (first.lr, first.bias_lr, first.momentum) == (0.0, 0.0, 0.8)
    half = plan.rates(StepRange(1, 25, 1))
    assert half.bias_lr == half.lr == pytest.approx(0.00901 / 2)


def test_a_large_batch_changes_warmup_and_rates() -> None:
    # 1024 images of 64: growth 16, root 4. 12 epochs of 50 batches, of 300: below a fifth.
    plan = schedule(epochs=300, batches=50, batch=1024, name="adamw")
    assert plan.warmup_batches == 600
    assert plan.accumulation == 1
    # The fall: epoch 11 of 300 is 1 - 11 / 300 * 0.99 = 0.9637 of 0.04.
    assert plan.rates(StepRange(11, 49, 1)).lr == pytest.approx(0.04 * 0.9637 * 599 / 600)
    assert plan.rates(StepRange(12, 1, 1)).lr == pytest.approx(0.04 * (1 - 12 / 300 * 0.99))
    # SGD's biases begin at 0.1 / 16, below the 0.01 that they end with.
    assert schedule(epochs=300, batches=50, batch=1024).rates(StepRange(0, 0, 1)).bias_lr == 0.00625


def test_rates_are_those_of_the_steps_last_batch() -> None:
    plan = schedule(epochs=10, batches=50)
    assert plan.rates(StepRange(0, 30, 3)) == plan.rates(StepRange(0, 32, 1))
