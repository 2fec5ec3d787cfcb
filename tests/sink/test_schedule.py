"""Schedules: against plain days and hours, over midnight and over the change of clocks."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sink.schedule import DAYS, ScheduleSettings, is_armed

HOUR_US = 3_600_000_000


def schedule(zone: str = "UTC", **windows: list[dict[str, object]]) -> ScheduleSettings:
    return ScheduleSettings.model_validate({"time_zone": zone, **windows})


def at(text: str, zone: str = "UTC") -> int:
    """Event time of a local time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1e6)


times = st.integers(0, 24 * 60 - 1)


@given(
    begin=times,
    end=times,
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    moment=st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_hours_are_minutes_of_the_week_by_the_clock_on_the_wall(
    begin: int, end: int, days: set[str], moment: datetime, zone: str
) -> None:
    hours = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    settings = schedule(zone, arm=[{"days": sorted(days), "hours": hours}])
    event_us = int(moment.replace(tzinfo=timezone.utc).timestamp() * 1e6)
    local = moment.replace(tzinfo=timezone.utc).astimezone(ZoneInfo(zone))
    minute = local.weekday() * 1440 + local.hour * 60 + local.minute
    length = (end - begin) % 1440 or 1440
    starts = [DAYS.index(day) * 1440 + begin for day in days]
    assert is_armed(settings, event_us) == any((minute - start) % 10080 < length for start in starts)


def test_without_a_schedule_or_with_an_empty_one_it_is_always_armed() -> None:
    assert is_armed(None, 0)
    assert is_armed(schedule(), 0)


def test_what_disarms_wins() -> None:
    settings = schedule(arm=[{"days": ["mon"]}], disarm=[{"hours": "12:00-13:00"}])
    monday = "2024-01-01T"
    assert [is_armed(settings, at(monday + time)) for time in ("11:59", "12:00", "12:59", "13:00")] == [1, 0, 0, 1]
    assert not is_armed(settings, at("2024-01-02T11:00"))
    only = schedule(disarm=[{"hours": "12:00-13:00"}])
    assert [is_armed(only, at(monday + time)) for time in ("11:59", "12:00")] == [1, 0]


def test_a_night_belongs_to_the_day_it_begins() -> None:
    settings = schedule(arm=[{"days": ["fri"], "hours": "22:00-06:00"}])
    assert is_armed(settings, at("2024-01-05T22:00"))  # a Friday
    assert is_armed(settings, at("2024-01-06T05:59"))
    assert not is_armed(settings, at("2024-01-06T06:00"))
    assert not is_armed(settings, at("2024-01-05T05:00"))


def test_the_hour_that_comes_twice_is_armed_twice() -> None:
    settings = schedule("Europe/Berlin", arm=[{"hours": "02:00-03:00"}])
    first_us = at("2024-10-27T00:00")  # UTC: 02:00 in Berlin for the first time, for the second an hour later
    hours = [is_armed(settings, first_us + hour * HOUR_US) for hour in range(-1, 3)]
    assert hours == [False, True, True, False]


def test_the_hour_that_does_not_come_is_not_armed() -> None:
    settings = schedule("Europe/Berlin", arm=[{"hours": "02:00-03:00"}])
    before_us = at("2024-03-31T00:30")  # UTC: 01:30 in Berlin; an hour later it is 03:30
    assert [is_armed(settings, before_us + hour * HOUR_US) for hour in range(2)] == [False, False]


@pytest.mark.parametrize("hours", ["8-9", "25:00-26:00", "24:00-01:00", "10:60-11:00", "10:00-11:00 ", "10:00"])
def test_hours_that_no_clock_shows_are_refused(hours: str) -> None:
    with pytest.raises(ValidationError):
        schedule(arm=[{"hours": hours}])


@pytest.mark.parametrize("zone", ["Europe/Berln", "", "../../etc/passwd", "/etc/passwd", "x" * 65])
def test_unknown_time_zones_are_refused(zone: str) -> None:
    with pytest.raises(ValidationError):
        schedule(zone)
