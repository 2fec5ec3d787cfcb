from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.clock import LIVE_STRAY_US, WALL_STEP_US, EventClock

WALL_US = 1_700_000_000_000_000
BEGUN_NS = 5_000_000_000  # the monotonic clock when the camera starts


def make(live: bool) -> EventClock:
    return EventClock(live, wall_us=lambda: WALL_US, monotonic_ns=lambda: BEGUN_NS)


@given(
    st.booleans(),
    st.lists(
        st.tuples(st.none() | st.floats(-1e7, 1e7, allow_nan=False), st.integers(0, 10**10)), min_size=1, max_size=60
    ),
)
def test_event_time_rises_strictly_whatever_the_source_says(live: bool, steps: list[tuple[float | None, int]]) -> None:
    clock, captured_ns, previous_us = make(live), BEGUN_NS, 0
    for pts_s, passed_ns in steps:
        captured_ns += passed_ns
        event_us = clock.stamp(pts_s, captured_ns)
        assert event_us > previous_us
        previous_us = event_us


@settings(max_examples=20, deadline=None)
@given(st.floats(-100e-6, 100e-6), st.lists(st.floats(0, 0.1), min_size=200, max_size=200), st.floats(0, 1e6))
def test_live_event_time_stays_with_arrival_despite_drift_and_jitter(
    drift: float, jitters: list[float], first_pts_s: float
) -> None:
    clock = make(live=True)
    for index in range(
        4000
    ):  # 40 minutes, a frame every 0.6 s, so that drift alone would come to a quarter of a second
        pts_s = first_pts_s + index * 0.6
        arrival_s = index * 0.6 * (1 + drift) + jitters[index % 200]
        event_us = clock.stamp(pts_s, BEGUN_NS + round(arrival_s * 1e9))
        assert abs(event_us - WALL_US - arrival_s * 1e6) < 150_000
    assert clock.jumps == 0


@given(st.floats(2, 1e6), st.sampled_from([1, -1]))
def test_a_leap_of_the_cameras_clock_is_reported_and_anchored_anew(leap_s: float, sign: int) -> None:
    clock = make(live=True)
    for index in range(50):
        clock.stamp(100 + index * 0.04, BEGUN_NS + index * 40_000_000)
    after = clock.stamp(100 + 2 + sign * leap_s, BEGUN_NS + 50 * 40_000_000)
    assert clock.jumps == 1
    assert abs(after - WALL_US - 2_000_000) < 50_000
    assert abs(clock.last_jump_us + sign * leap_s * 1e6) < 50_000


class Source:
    """A live source whose frames arrive when they are said to, on a wall clock that can be set."""

    def __init__(self) -> None:
        self.now_s = 5.0
        self.wall_offset_us = WALL_US
        self.clock = EventClock(
            live=True,
            wall_us=lambda: self.wall_offset_us + round(self.now_s * 1e6),
            monotonic_ns=lambda: round(self.now_s * 1e9),
        )

    def frame(self, pts_s: float | None, after_s: float) -> float:
        """Event time of a frame that comes so much later, seconds ahead of the wall clock."""
        self.now_s += after_s
        event_us = self.clock.stamp(pts_s, round(self.now_s * 1e9))
        return (event_us - self.wall_offset_us) / 1e6 - self.now_s


def test_a_segment_that_arrives_at_once_is_no_jump() -> None:
    clock = make(live=True)
    events = [clock.stamp(index * 0.04, BEGUN_NS + index * 40_000_000) for index in range(150)]
    for segment in range(1, 10):  # six-second HLS segments
        for index in range(150):
            arrival_ns = (segment + 1) * 6_000_000_000 + index * 1_000_000
            events.append(clock.stamp(segment * 6 + index * 0.04, BEGUN_NS + arrival_ns))
            assert not clock.catching_up
    assert clock.jumps == 0
    steps = [b - a for a, b in itertools.pairwise(events)]
    assert 30_000 < min(steps) <= max(steps) < 41_000


@given(st.sampled_from([1.0, 2.0, 6.0, 18.0]))
def test_what_a_server_sends_of_the_past_at_each_connection_does_not_move_event_time(burst_s: float) -> None:
    source = Source()
    for _ in range(5):
        source.clock.restart()
        source.frame(0.0, 1.0)
        told = [source.clock._event_us]
        for index in range(1, round(burst_s * 25) + 100):
            ahead_s = source.frame(index * 0.04, 0.002 if index < burst_s * 25 else 0.04)
            if not source.clock.catching_up:
                told.append(source.clock._event_us)
        assert abs(ahead_s) < 0.01
        assert min(b - a for a, b in itertools.pairwise(told)) > 19_000  # nothing moves more than twice too fast
        assert len(told) < 120  # the first half second of it is not known to be old, all else is told
    assert source.clock.jumps == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 0.15), min_size=50, max_size=50), st.floats(0, 0.3))
def test_of_a_camera_that_sends_as_it_sees_nothing_is_taken_for_the_past(jitters: list[float], first_s: float) -> None:
    source = Source()
    arrived_s = 0.0
    for index in range(300):
        due_s = max(arrived_s, index * 0.04 + (jitters[index % 50] if index else first_s))
        assert source.frame(index * 0.04, due_s - arrived_s) <= 0.3
        assert not source.clock.catching_up
        arrived_s = due_s


def test_segments_that_come_sooner_than_the_first_do_not_squeeze_what_they_show() -> None:
    clock = make(live=True)
    events = []
    for segment in range(6):
        late_ns = 400_000_000 if segment == 0 else 0
        for index in range(150):
            arrival_ns = (segment + 1) * 6_000_000_000 + late_ns + index * 1_000_000
            event_us = clock.stamp(segment * 6 + index * 0.04, BEGUN_NS + arrival_ns)
            if segment and not clock.catching_up:
                events.append(event_us)
    assert clock.jumps == 0
    assert min(b - a for a, b in itertools.pairwise(events)) > 19_000
    assert len(events) > 700


def test_of_a_recording_that_is_played_as_fast_as_it_can_be_half_a_minute_at_most_is_taken_for_the_past() -> None:
    source = Source()
    source.frame(0, 0)
    old = []
    for index in range(1, 2000):
        source.frame(index * 0.04, 0.001)
        old.append(source.clock.catching_up)
    assert sum(old) < 750 and not any(old[750:])  # 30 s of 25 fps


def test_timestamps_that_run_too_fast_cost_the_first_half_minute_at_most() -> None:
    source = Source()
    old = []
    for index in range(1000):
        source.frame(index * 0.09, 0.04)
        old.append(source.clock.catching_up)
    assert not any(old[334:])


@given(st.sampled_from([-3600.0, -70.0, 5.0, 30 * 86400.0]), st.booleans())
def test_a_system_clock_that_is_set_is_followed_after_ten_seconds(step_s: float, timed: bool) -> None:
    source = Source()

    def frame(index: int) -> float:
        return source.frame(index * 0.04 if timed else None, 0.04)

    for index in range(100):
        assert abs(frame(index)) < 0.01
    source.wall_offset_us += round(step_s * 1e6)
    aheads = [frame(index) for index in range(100, 500)]
    assert all(abs(ahead + step_s) < 0.01 for ahead in aheads[:240])
    assert all(abs(ahead) < 0.01 for ahead in aheads[260:])
    assert (source.clock.jumps, source.clock.last_jump_was_ours) == (1, True)
    assert abs(source.clock.last_jump_us / 1e6 - step_s) < 0.01


@pytest.mark.parametrize("timed", [True, False])
def test_a_system_clock_that_is_set_back_a_little_is_waited_for(timed: bool) -> None:
    source = Source()
    for index in range(100):
        source.frame(index * 0.04 if timed else None, 0.04)
    source.wall_offset_us -= 30_000_000
    events = []
    for index in range(100, 20_000):  # thirteen minutes
        ahead_s = source.frame(index * 0.04 if timed else None, 0.04)
        events.append(source.clock._event_us)
    assert ahead_s < WALL_STEP_US / 1e6
    assert source.clock.jumps == 0
    assert min(b - a for a, b in itertools.pairwise(events)) > 37_000


def test_a_system_clock_that_comes_back_at_once_moves_nothing() -> None:
    source = Source()
    for index in range(1000):
        if index in (100, 200):
            source.wall_offset_us += 60_000_000 if index == 100 else -60_000_000
        source.frame(index * 0.04, 0.04)
    assert source.clock.jumps == 0


def test_a_stream_that_falls_far_behind_is_anchored_anew() -> None:
    clock = make(live=True)
    clock.stamp(0, BEGUN_NS)
    event_us = clock.stamp(0.04, BEGUN_NS + LIVE_STRAY_US * 1000 + 100_000_000)
    assert clock.jumps == 1
    assert event_us - WALL_US >= LIVE_STRAY_US


def test_without_timestamps_arrival_counts() -> None:
    clock = make(live=True)
    assert clock.stamp(None, BEGUN_NS) == WALL_US
    assert clock.stamp(None, BEGUN_NS + 7_000_000) == WALL_US + 7_000


def test_a_wall_clock_set_back_by_an_hour_does_not_stop_event_time() -> None:
    wall = [WALL_US]
    clock = EventClock(True, wall_us=lambda: wall[0], monotonic_ns=lambda: BEGUN_NS)
    before = clock.stamp(0, BEGUN_NS)
    wall[0] -= 3_600_000_000
    clock.restart()
    first = clock.stamp(0, BEGUN_NS + 1_000_000_000)
    second = clock.stamp(0.04, BEGUN_NS + 1_040_000_000)
    assert before < first
    assert 39_000 <= second - first <= 41_000
    assert clock.jumps == 0


@given(st.lists(st.floats(0.001, 3000), min_size=1, max_size=50), st.floats(-1e6, 1e6))
def test_a_files_event_time_has_the_files_own_spacing(gaps: list[float], first_s: float) -> None:
    clock, pts_s = make(live=False), first_s
    start_us = clock.stamp(pts_s, 0)
    assert start_us == WALL_US
    for gap in gaps:
        pts_s += gap
        assert abs(clock.stamp(pts_s, 0) - start_us - (pts_s - first_s) * 1e6) <= 2
    assert clock.jumps == 0


def test_a_looped_file_goes_on_one_frame_later() -> None:
    clock = make(live=False)
    last = [clock.stamp(index * 0.04, 0, 0.04) for index in range(10)][-1]
    clock.restart()
    assert clock.stamp(0.0, 0, 0.04) == last + 40_000
    assert clock.jumps == 0


def test_a_backward_timestamp_in_a_file_is_a_reported_jump() -> None:
    clock = make(live=False)
    clock.stamp(100.0, 0, 0.04)
    assert clock.stamp(1.0, 0, 0.04) == WALL_US + 40_000
    assert (clock.jumps, clock.last_jump_us) == (1, -99_000_000)
