"""Objects that stand still stop counting, and stay known when their tracks break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.rules import KINDS
from sink.rules.presence import PresenceState
from sink.rules.stationary import FORGOTTEN_AFTER_US, MOST_PLACES, WATCHED_GAP_US, Place, iou, moving
from sink.settings import PresenceRule, SceneSettings
from sink.tracks import Track, TrackedFrame

Tracked = Callable[..., TrackedFrame]
RULE = PresenceRule(by="track", confirm_frames=1, ignore_stationary_s=10)
PARKED: dict[str, Any] = {"label": "car", "still_us": 10_000_000}


@pytest.fixture
def step() -> Callable[[TrackedFrame], list[str]]:
    """The rule on its own state; each call says which tracks it found."""
    state = PresenceState()

    def run(frame: TrackedFrame) -> list[str]:
        nonlocal state
        found = KINDS["presence"].step(RULE, state, frame, SceneSettings())
        # Every frame is a restart.
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=PresenceState)
        return [one.key for one in found]

    return run


def test_a_parked_car_counts_until_it_has_stood_long_enough_and_again_when_it_leaves(
    tracked: Tracked, step: Callable[[TrackedFrame], list[str]]
) -> None:
    assert step(tracked(0, (1, 0.5, 0.5, {"label": "car", "still_us": 9_999_999}))) == ["track 1"]
    assert step(tracked(1, (1, 0.5, 0.5, PARKED))) == []
    assert step(tracked(2, (1, 0.501, 0.5, {"label": "car"}))) == [], "it has hardly begun to move"
    assert step(tracked(3, (1, 0.52, 0.5, {"label": "car"}))) == ["track 1"]


def test_a_track_that_breaks_does_not_find_the_car_again(
    tracked: Tracked, step: Callable[[TrackedFrame], list[str]]
) -> None:
    step(tracked(0, (1, 0.5, 0.5, PARKED)))
    step(tracked(1, ended=(1,)))
    # As a new track, also of a camera that was off for a night and reconnects.
    assert step(tracked(2, (2, 0.501, 0.5, {"label": "car"}))) == []
    night_us = tracked(3).record.event_us + 12 * 3_600_000_000
    assert step(tracked(3, (3, 0.5, 0.5, {"label": "car"}), session="s2", event_us=night_us)) == []
    # Somebody else there, or a car elsewhere, counts.
    assert step(tracked(4, (4, 0.5, 0.5), session="s2", event_us=night_us + 1)) == ["track 4"]
    assert step(tracked(5, (5, 0.7, 0.5, {"label": "car"}), session="s2", event_us=night_us + 2)) == ["track 5"]


def test_a_place_that_stays_empty_is_forgotten(tracked: Tracked, step: Callable[[TrackedFrame], list[str]]) -> None:
    start_us = tracked(0).record.event_us
    step(tracked(0, (1, 0.5, 0.5, PARKED)))
    frames = FORGOTTEN_AFTER_US // WATCHED_GAP_US
    for seq in range(1, frames + 1):
        step(tracked(seq, event_us=start_us + seq * WATCHED_GAP_US))
    again = tracked(frames + 1, (2, 0.5, 0.5, {"label": "car"}), event_us=start_us + (frames + 1) * WATCHED_GAP_US)
    assert step(again) == ["track 2"]


def test_places_are_bounded_and_the_longest_empty_goes_first() -> None:
    places = [Place("car", (50.0 * n, 0.0, 50.0 * n + 40, 40.0), empty_us=n) for n in range(MOST_PLACES)]
    new = Track(1, "car", 0.9, (0.0, 500.0, 40.0, 540.0), (0.0, 0.0), 0, 9, 10_000_000)
    assert moving([new], places, 10_000_000, 0) == set()
    assert len(places) == MOST_PLACES
    assert max(place.empty_us for place in places) == MOST_PLACES - 2
    assert any(place.box == new.box for place in places)


corner = st.integers(-20, 20)
boxes = st.tuples(corner, corner, st.integers(1, 20), st.integers(1, 20)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@given(one=boxes, other=boxes)
def test_iou_counts_cells(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    cells = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one, other)]
    expected = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
    assert iou(one, other) == pytest.approx(expected)
    assert iou(other, one) == iou(one, other)
