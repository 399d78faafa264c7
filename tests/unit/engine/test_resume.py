"""A run that is stopped before any of its steps and resumed ends with the bits of one that was not."""

from small_training import BATCHES, EPOCHS, attempt, configuration, one_thread_job, saved


def test_stopped_before_every_step_and_resumed_a_run_ends_with_the_same_bits(
    synthetic, tmp_path, monkeypatch
) -> None:
    """In fp16, which has all that other precisions have to keep, and the scale of the loss."""
    config = configuration(tmp_path)
    with one_thread_job() as job:
        steps = attempt(config, synthetic, tmp_path / "whole", job, None, monkeypatch)
        assert steps < EPOCHS * BATCHES, "nothing was accumulated"
        for done in range(1, steps):
            assert attempt(config, synthetic, tmp_path / "parts", job, 1, monkeypatch) == done
        assert attempt(config, synthetic, tmp_path / "parts", job, None, monkeypatch) == steps
    expected, found = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert found.keys() == expected.keys()
    differing = [name for name, value in expected.items() if value != found[name]]
    assert not differing
    assert expected["step"] == steps
    # It was halved and is on its way to be doubled: a scale that is lost would be another one.
    assert expected["scaler"]["scale"] < 2**16
    assert expected["scaler"]["_growth_tracker"] > 1
