"""When a rule is armed: days and hours of a place's own time, evaluated on event time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # as datetime.weekday() counts
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _is_zone(name: str) -> str:
    try:
        zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"no time zone {name!r} is known here; expected a name such as Europe/Berlin or UTC "
            "(where the system has no time zones: pip install tzdata)"
        ) from error
    return name


@lru_cache(maxsize=64)
def zone(name: str) -> ZoneInfo:
    """The time zone of that name; raises ZoneInfoNotFoundError, ValueError or OSError."""
    return ZoneInfo(name)


class HoursSettings(BaseModel):
    """Hours on some days of the week."""

    model_config = ConfigDict(extra="forbid")

    days: list[Day] = Field(list(DAYS), min_length=1, max_length=7, description="Days on which the hours begin.")
    hours: str = Field(
        "00:00-24:00",
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$",
        description="From, up to and without, as HH:MM-HH:MM; 22:00-06:00 ends the next morning.",
    )

    def hold(self, local: datetime) -> bool:
        """Whether a moment, given in local time, lies within."""
        begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in self.hours.split("-"))
        minute = local.hour * 60 + local.minute
        if begin < end:
            return begin <= minute < end and DAYS[local.weekday()] in self.days
        # Over midnight (equal: all day round): the part after midnight belongs to the day before.
        if minute >= begin:
            return DAYS[local.weekday()] in self.days
        return minute < end and DAYS[(local.weekday() - 1) % 7] in self.days


class ScheduleSettings(BaseModel):
    """When a rule is armed. Clock changes need no care: what counts is what a clock on the wall shows."""

    model_config = ConfigDict(extra="forbid")

    time_zone: Annotated[str, AfterValidator(_is_zone)] = Field(
        min_length=1, max_length=64, description="Of the days and hours, as Europe/Berlin or UTC."
    )
    arm: list[HoursSettings] = Field(
        default_factory=list,
        max_length=100,
        description="When the rule is armed: `days` (mon to sun; default: all) on which the hours begin, and `hours` "
        "(HH:MM-HH:MM; default: all day; 22:00-06:00 ends the next morning). Empty: always.",
    )
    disarm: list[HoursSettings] = Field(
        default_factory=list, max_length=100, description="When it is not, whatever `arm` says; written as `arm`."
    )


def is_armed(schedule: ScheduleSettings | None, event_us: int) -> bool:
    """Whether a rule with this schedule is armed at a moment of event time."""
    if schedule is None or not (schedule.arm or schedule.disarm):
        return True
    # Not fromtimestamp, whose range is the platform's.
    local = (_EPOCH + timedelta(microseconds=event_us)).astimezone(zone(schedule.time_zone))
    if any(hours.hold(local) for hours in schedule.disarm):
        return False
    return not schedule.arm or any(hours.hold(local) for hours in schedule.arm)
