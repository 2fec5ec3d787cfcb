"""Settings of the sink: those of its process here, those of rules and scenes passed on from their own modules."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sink.rule_settings import (
    AbsentRule,
    BaseRule,
    CountRule,
    DwellRule,
    LineRule,
    PresenceRule,
    RuleSettings,
    SpeedRule,
    ZoneRule,
    rule_settings,
)
from sink.scene import GroundSettings, SceneSettings
from sink.schedule import ScheduleSettings

__all__ = [
    "AbsentRule",
    "BaseRule",
    "CountRule",
    "DwellRule",
    "GroundSettings",
    "LineRule",
    "PresenceRule",
    "RuleSettings",
    "SceneSettings",
    "ScheduleSettings",
    "SinkSettings",
    "SpeedRule",
    "ZoneRule",
    "rule_settings",
]


class SinkSettings(BaseModel):
    """The sink process."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="Its name among the sinks that share the cameras: of one running sink only, and the same after a "
        "restart, so that it takes its cameras up at once; empty: this host's name.",
    )
    # Long against a pause of Redis or of the machine, short against the time in which somebody looks at an alert.
    lease_s: float = Field(
        5.0,
        ge=0.5,
        le=300,
        description="A sink that is not heard of for this long loses its cameras to the other sinks (seconds).",
    )
    reorder_timeout_s: float = Field(
        1.0, ge=0, le=60, description="How long a missing frame is waited for while later ones are at hand (seconds)."
    )
    # As many as a stream keeps by default (redis.detections_maxlen): after an outage of Redis one worker may deliver
    # its whole outbox before the next one begins.
    reorder_frames: int = Field(
        10_000, ge=1, le=1_000_000, description="Frames of a camera held while one is missing (frames)."
    )
    commit_s: float = Field(
        0.2, ge=0, le=10, description="How long frames without an alert stay unacknowledged, to save writes (seconds)."
    )
    same_host: bool | None = Field(
        None,
        description="The detector workers run on this host, so that latency_ms of an alert can be measured. "
        "Empty: they do unless link.workers is tcp://.",
    )
