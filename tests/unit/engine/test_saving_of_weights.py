"""What is not finite is neither scored nor saved."""

import pytest
from small_training import attempt, configuration, one_thread_job

from hvdyolo.engine.ema import MovingAverage
from hvdyolo.utils.errors import InternalError


@pytest.mark.parametrize("stop", [None, 3])
def test_an_average_that_is_not_finite_is_not_saved(synthetic, tmp_path, monkeypatch, stop) -> None:
    """Neither at the end of an epoch nor on a request to stop."""
    update = MovingAverage.update

    def damaged(self, model) -> None:
        update(self, model)
        self.model.get_buffer("model.1.bn.running_var")[0] = float("inf")

    monkeypatch.setattr(MovingAverage, "update", damaged)
    run = tmp_path / "run"
    with (
        one_thread_job() as job,
        pytest.raises(InternalError, match=r"model\.1\.bn\.running_var is not finite"),
    ):
        attempt(configuration(tmp_path), synthetic, run, job, stop, monkeypatch)
    assert not list(run.rglob("*.safetensors"))
