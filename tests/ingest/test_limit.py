from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.limit import FpsLimit


@given(st.floats(1, 60), st.floats(0.5, 60), st.lists(st.floats(0, 0.4), min_size=50, max_size=50))
def test_the_limit_is_kept_and_used(source_fps: float, fps: float, jitter: list[float]) -> None:
    limit = FpsLimit(fps)
    passed, seconds = 0, 30
    for index in range(int(source_fps * seconds)):
        event_us = round((index + jitter[index % 50]) / source_fps * 1e6)
        passed += limit.passes(event_us)
    possible = min(fps, source_fps) * seconds
    assert passed <= fps * seconds + 2
    # Jitter of 0.4 frames can make single frames too early, never a whole beat.
    assert passed >= possible * 0.7 - 2


def test_the_mean_rate_is_exact_when_it_does_not_divide_the_sources() -> None:
    limit = FpsLimit(10)
    assert sum(limit.passes(index * 40_000) for index in range(2500)) == 1000  # 25 fps for 100 s


def test_no_limit_passes_all() -> None:
    limit = FpsLimit(None)
    assert all(limit.passes(index) for index in range(100))


def test_a_pause_is_not_made_up_for_with_a_burst() -> None:
    limit = FpsLimit(5)
    limit.passes(0)
    assert sum(limit.passes(60_000_000 + index * 10_000) for index in range(20)) == 1


def test_where_event_time_falls_the_beat_starts_anew() -> None:
    limit = FpsLimit(10)
    assert limit.passes(3_600_000_000)
    assert limit.passes(0)  # the system's clock was set back by an hour
    assert [limit.passes(at) for at in (50_000, 100_000)] == [False, True]
