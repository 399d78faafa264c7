from hypothesis import given
from hypothesis import strategies as st

from hvdyolo.data.division import divide


def test_shards_are_of_about_the_size_asked_for() -> None:
    assert divide(12, 120, 40) == [range(4), range(4, 8), range(8, 12)]
    assert divide(3, 100, 60) == [range(1), range(1, 3)]  # 1.7 shards are 2
    assert divide(3, 80, 60) == [range(3)]  # 1.3 are 1


def test_there_is_no_empty_one() -> None:
    assert divide(3, 1002, 10) == [range(1), range(1, 2), range(2, 3)]
    assert divide(3, 0, 10) == [range(3)]


@given(st.integers(1, 300), st.integers(0, 10**6), st.integers(1, 3000))
def test_every_sample_is_in_one_run_and_runs_are_alike(samples: int, size: int, wanted: int) -> None:
    runs = divide(samples, size, wanted)
    assert [place for run in runs for place in run] == list(range(samples))
    assert len(runs) == max(1, min(round(size / wanted), samples))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert all(runs)
