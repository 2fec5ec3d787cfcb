"""Settings of incidents: when they end, how many a camera may raise, and what the system says of itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SystemSettings(BaseModel):
    """Incidents about cameras and detectors themselves."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = Field(True, description="Raise system.camera_down, picture_frozen and detector_slow.")
    camera_down_s: float = Field(
        15, ge=1, le=86_400, description="A live camera without frames for this long is down (seconds)."
    )
    # Longer than anybody's keyframes are apart, and than a sleeping camera's looks.
    picture_same_s: float = Field(
        120,
        ge=0,
        le=86_400,
        description="A live camera that has sent the same picture for this long is frozen (its same_level says what "
        "is the same); 0: never (seconds).",
    )
    ingest_silent_s: float = Field(
        10,
        ge=2,
        le=3600,
        description="Without a word from its ingest process for this long a camera is down (seconds).",
    )
    detector_slow_ms: float = Field(
        1000,
        ge=1,
        le=600_000,
        description="Detectors promise detections of live cameras within this after capture, averaged over ten seconds "
        "(milliseconds).",
    )
    detector_slow_s: float = Field(
        30, ge=1, le=86_400, description="The promise broken for this long is an incident (seconds)."
    )
    # Longer than a camera takes to come back and fail again: a flapping one is one incident.
    merge_s: float = Field(
        30, ge=0, le=86_400, description="A system incident is over when all was well for this long (seconds)."
    )
    cooldown_s: float = Field(
        300, ge=0, le=86_400, description="No second one of the same kind and camera is opened within this (seconds)."
    )


class IncidentSettings(BaseModel):
    """What rules find, put together into incidents: each is opened once, perhaps updated, and closed."""

    model_config = ConfigDict(extra="forbid")

    # A sleeping camera is looked at every 10 s and at the next keyframe (adaptive.max_quiet_s), and one look may find
    # nothing: the car that stays parked is one incident all the same.
    merge_s: float = Field(
        30,
        ge=0,
        le=86_400,
        description="An incident is over when it was not found for this long; until then it goes on (seconds of the "
        "frames' time). At least one and a half times adaptive.max_quiet_s of a camera that may sleep.",
    )
    update_s: float = Field(
        10,
        ge=0.1,
        le=86_400,
        description="While it goes on, an update at most this often (seconds of the frames' time).",
    )
    # One every half minute on average: more than anybody reads, and still no storm.
    max_per_hour: int = Field(
        120,
        ge=1,
        le=1_000_000,
        description="Incidents a camera may open in an hour of its time; one system.suppressed tells of all others.",
    )
    idle_s: float = Field(
        60, ge=1, le=86_400, description="A camera's incidents are closed when no frame came for this long (seconds)."
    )
    # Longer than another host takes to start again: its cameras are not gone because it is.
    unwatched_s: float = Field(
        3600,
        ge=1,
        le=2_592_000,
        description="Incidents of cameras that other sinks had are closed when none has watched the camera for this "
        "long; of those taken out of this sink's own configuration, after idle_s (seconds).",
    )
    system: SystemSettings = Field(
        default_factory=lambda: SystemSettings.model_validate({}),
        description="Incidents about cameras and detectors themselves.",
    )
