from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ingest.backoff import Backoff
from ingest.settings import ReconnectSettings


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(st.integers(), st.floats(0.05, 2), st.floats(2, 60), st.lists(st.booleans(), max_size=30))
def test_waits_stay_between_base_and_cap(seed: int, base_s: float, cap_s: float, stubborn: list[bool]) -> None:
    settings = ReconnectSettings(base_s=base_s, cap_s=cap_s, stubborn_cap_s=cap_s * 2)
    backoff = Backoff(settings, Clock(), random.Random(seed).uniform)
    for each in stubborn:
        assert base_s <= backoff.next_wait_s(each) <= (cap_s * 2 if each else cap_s)


def test_each_wait_is_at_most_three_times_the_one_before() -> None:
    settings = ReconnectSettings(base_s=0.1, cap_s=5)
    backoff = Backoff(settings, Clock(), lambda low, high: high)
    waits = [round(backoff.next_wait_s(), 3) for _ in range(6)]
    assert waits == [0.3, 0.9, 2.7, 5, 5, 5]


def test_only_a_healthy_minute_begins_anew() -> None:
    clock = Clock()
    backoff = Backoff(ReconnectSettings(base_s=0.1, cap_s=5), clock, lambda low, high: high)
    for _ in range(5):
        backoff.next_wait_s()
    backoff.streaming()
    clock.now_s += 59
    assert backoff.next_wait_s() == 5  # it flaps: no reset
    backoff.streaming()
    clock.now_s += 30
    backoff.streaming()  # health counts from the first frame, not the last
    clock.now_s += 31
    assert round(backoff.next_wait_s(), 3) == 0.3


def test_a_camera_is_tried_within_a_second_of_any_outage() -> None:
    """The promise of a first frame within two seconds of a camera's return leaves one second for opening it."""
    backoff = Backoff(ReconnectSettings(), Clock())
    assert max(backoff.next_wait_s() for _ in range(1000)) <= 1.0


def test_cameras_lost_together_come_back_apart() -> None:
    waits = [Backoff(ReconnectSettings(), Clock(), random.Random(seed).uniform).next_wait_s() for seed in range(20)]
    assert len({round(wait, 2) for wait in waits}) > 10
