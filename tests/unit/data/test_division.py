import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdyolo.data.division import divide

SIZES = st.lists(st.integers(0, 1000), min_size=1, max_size=60)


def test_shards_of_equal_samples_are_equal() -> None:
    assert divide(np.full(12, 10), 40) == [range(4), range(4, 8), range(8, 12)]


def test_a_sample_goes_where_its_middle_lies() -> None:
    """In two shards of 50 bytes."""
    assert divide(np.array([30, 30, 40]), 50) == [range(2), range(2, 3)]  # at 15, 45 and 80
    assert divide(np.array([30, 50, 20]), 50) == [range(1), range(1, 3)]  # at 15, 55 and 90


def test_a_sample_larger_than_a_shard_leaves_no_empty_one() -> None:
    assert divide(np.array([1, 1000, 1]), 10) == [range(1), range(1, 2), range(2, 3)]


@settings(deadline=None)
@given(SIZES, st.integers(1, 3000))
def test_every_sample_is_in_one_run_and_runs_are_about_as_long_as_asked(
    sizes: list[int], wanted: int
) -> None:
    runs = divide(np.array(sizes), wanted)
    assert [place for run in runs for place in run] == list(range(len(sizes)))
    assert all(runs)
    count = max(1, min(round(sum(sizes) / wanted), len(sizes)))
    assert len(runs) <= count
    # Both ends of a run are off by half a sample at most.
    ends = np.cumsum([0, *sizes])
    for run in runs:
        assert ends[run.stop] - ends[run.start] <= sum(sizes) / count + max(sizes)
