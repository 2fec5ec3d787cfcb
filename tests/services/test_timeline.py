"""The timeline's picture shows when there was something to see, and when each rule told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.commands.timeline import EDGE, ROW, WIDTH, Timeline, TimelineError, check_name, elapsed, microseconds
from wire.alerts import LAST_EVENT_US, Alert, rfc3339
from wire.messages import DetectionRecord

START_US = 1_700_000_000_000_000


def alert(event: str, opened_s: float, at_s: float, rule: str = "r", incident: str = "i") -> Alert:
    opened, at = (rfc3339(START_US + round(one * 1e6)) for one in (opened_s, at_s))
    return Alert(1, f"{incident}{event}", incident, event, "door", rule, "t", at, opened)


def coloured(row: np.ndarray) -> np.ndarray:
    """The columns of a row's middle that are neither grey nor white."""
    middle = row[ROW // 2].astype(int)
    return np.flatnonzero(np.ptp(middle, axis=1) > 30)


@pytest.fixture
def timeline(detection_record: Callable[..., DetectionRecord]) -> Timeline:
    """A hundred seconds in which somebody is there from 20 to 50."""
    made = Timeline()
    for second in range(101):
        labels = ["person"] if 20 <= second < 50 else []
        made.saw(detection_record(second, *labels, event_us=START_US + second * 1_000_000))
    return made


def test_an_incident_is_a_bar_from_its_opening_to_its_close(timeline: Timeline) -> None:
    for one in (alert("opened", 20, 20.5), alert("updated", 20, 30), alert("closed", 20, 50)):
        timeline.told(one)
    timeline.told(alert("opened", 75, 75, rule="s", incident="j"))
    picture = timeline.draw()
    assert picture.shape == (2 * EDGE + 4 * ROW, WIDTH, 3)
    bar = coloured(picture[EDGE + ROW : EDGE + 2 * ROW])
    per_s = len(bar) / 30
    assert np.all(np.diff(bar) == 1), "one bar"
    instant = coloured(picture[EDGE + 2 * ROW : EDGE + 3 * ROW])
    assert 1 <= len(instant) < 10, "an instant is to be seen, too"
    assert instant[0] - bar[0] == pytest.approx(55 * per_s, abs=4)
    objects = picture[EDGE + ROW - 6, :, 0] == 150
    assert np.flatnonzero(objects)[0] == pytest.approx(bar[0], abs=2)


def test_the_same_gives_the_same_file(timeline: Timeline, tmp_path: Path) -> None:
    timeline.told(alert("opened", 1, 2))
    for name in ("a.png", "b.png"):
        timeline.write(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_cannot_be_made_is_said_in_words(timeline: Timeline, tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match="not one frame"):
        Timeline().write(tmp_path / "t.png")
    with pytest.raises(TimelineError, match="cannot be written"):
        timeline.write(tmp_path)
    with pytest.raises(TimelineError, match=r"ends in \.png"):
        check_name(tmp_path / "t.jpg")


@given(st.integers(1, 10**13), st.integers(0, 10**6))
def test_any_length_is_drawn(length_us: int, opened_us: int) -> None:
    timeline = Timeline(START_US, START_US + length_us)
    timeline.told(alert("opened", min(opened_us, length_us) / 1e6, length_us / 1e6))
    assert timeline.draw().shape[1] == WIDTH


@given(st.integers(0, LAST_EVENT_US))
def test_times_are_exact(event_us: int) -> None:
    assert microseconds(rfc3339(event_us)) == event_us


def test_lengths_are_read_as_on_a_clock() -> None:
    assert [elapsed(us) for us in (0, 999, 61_001_000, 3_600_000_000)] == [
        "0:00:00.000",
        "0:00:00.000",
        "0:01:01.001",
        "1:00:00.000",
    ]
