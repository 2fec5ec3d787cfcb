"""Settings of one camera, and of the ingest process that reads cameras."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ingest.errors import SourceError
from ingest.sources import parse


class _Settings(BaseModel):
    # Inputs are kept out of validation errors: a source may hold a password.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class MotionSettings(_Settings):
    """The pixel gate: frames in which nothing moved are not detected; they are counted as `static`."""

    enabled: bool = Field(default=False, description="Detect only when pixels change; off: every frame is looked at.")
    threshold: int = Field(
        default=14,
        ge=1,
        le=255,
        description="How far a cell must leave its background to count as changed (grey levels).",
    )
    min_changed: float = Field(
        default=0.002,
        gt=0,
        le=1,
        description="Share of changed cells from which a frame passes (fraction of the picture).",
    )
    max_quiet_s: float = Field(
        default=2.0, gt=0, le=3600, description="One frame passes at least this often, however quiet it is (seconds)."
    )


class AdaptiveSettings(_Settings):
    """The adaptive decode profile: while nothing moves, most packets are watched by their size and not decoded."""

    quiet_s: float = Field(
        default=3.0,
        ge=1,
        le=3600,
        description="Nothing moved for this long, and the camera falls asleep at its next keyframe (seconds).",
    )
    max_quiet_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Asleep, a keyframe is decoded and detected this often, or as often as there are any (seconds). "
        "At most two thirds of incidents.merge_s, or each look is a new incident.",
    )


class ReconnectSettings(_Settings):
    """Decorrelated back-off between attempts to open a live source."""

    base_s: float = Field(default=0.2, ge=0.01, le=60, description="Shortest wait before an attempt (seconds).")
    cap_s: float = Field(
        default=1.0,
        ge=0.01,
        le=3600,
        description="Longest wait; a camera is back within about this and its start (seconds).",
    )
    stubborn_cap_s: float = Field(
        default=30.0,
        ge=0.01,
        le=3600,
        description="Longest wait when a person has to mend it, as a wrong password; spares locked accounts (seconds).",
    )
    healthy_after_s: float = Field(
        default=60.0, gt=0, le=3600, description="Streaming this long, a camera starts again from base_s (seconds)."
    )

    @model_validator(mode="after")
    def _caps_above_base(self) -> ReconnectSettings:
        if self.cap_s < self.base_s or self.stubborn_cap_s < self.base_s:
            raise ValueError(f"cap_s and stubborn_cap_s must be at least base_s ({self.base_s})")
        return self


class CameraSettings(_Settings):
    """One camera: where it is, what to decode of it, how to come back to it."""

    source: str = Field(
        min_length=1,
        repr=False,
        description="File, folder of images, rtsp(s)://, http(s):// (MJPEG, HLS), webcam number, /dev/videoN or sim://.",
    )
    enabled: bool = Field(True, description="False: keep the entry, read nothing.")
    live: bool | None = Field(
        default=None,
        description="Live sources drop and reconnect, others are detected whole and end; empty: by the kind of source.",
    )
    profile: Literal["all", "keyframes", "adaptive"] | None = Field(
        default=None,
        description="all: decode every frame; keyframes: only those, often one a second, for little CPU; adaptive: "
        "all while something moves, some keyframes while not; empty: adaptive for live H.264 and H.265, otherwise all.",
    )
    adaptive: AdaptiveSettings = Field(default_factory=AdaptiveSettings, description="For the profile adaptive.")
    fps: float | None = Field(
        default=None,
        gt=0,
        le=240,
        description="At most this many frames are detected a second of event time; empty: all.",
    )
    motion: MotionSettings = Field(default_factory=MotionSettings, description="Pixel motion gate.")
    same_level: float | None = Field(
        default=0,
        ge=0,
        le=255,
        description="A live picture that differs from an earlier one by no more than this on average is the same one: "
        "the camera repeats itself (system.picture_frozen). 0: bit for bit, as sensor noise never is; about 0.5 for "
        "encoders that blur it; empty: never look, as for a drawn or noiseless picture (grey levels).",
    )
    rotate: Literal["auto", 0, 90, 180, 270] = Field(
        default="auto", description="Turn the picture clockwise (degrees); auto: as the video's own rotation mark says."
    )
    rtsp_transport: Literal["tcp", "udp"] = Field(
        default="tcp", description="How RTSP carries its packets; udp loses some on a busy network, tcp delays them."
    )
    tls_verify: bool = Field(
        default=False,
        description="Insist on a trusted certificate for rtsps:// and https://; most cameras sign their own.",
    )
    open_timeout_s: float = Field(
        default=5.0, ge=0.1, le=300, description="Longest wait for a source to open (seconds)."
    )
    read_timeout_s: float = Field(
        default=5.0, ge=0.2, le=3600, description="No packet for this long, and the camera counts as frozen (seconds)."
    )
    reconnect: ReconnectSettings = Field(default_factory=ReconnectSettings, description="Back-off between attempts.")
    loop: bool = Field(default=False, description="Start a file or folder again at its end; event time goes on rising.")
    pace: Literal["fastest", "realtime"] = Field(
        default="fastest",
        description="How fast files are read: as fast as they are detected, or at their own frame rate.",
    )
    images_per_s: float = Field(
        default=1.0, gt=0, le=240, description="Event time between images of a folder, as a rate (images per second)."
    )

    @field_validator("source")
    @classmethod
    def _understood(cls, source: str) -> str:
        try:
            parse(source)
        except SourceError as error:
            raise ValueError(str(error)) from None
        return source

    @property
    def may_sleep(self) -> bool:
        """Whether the profile may be adaptive; where it is left to the codec, that is known only when it is opened."""
        if self.profile is not None:
            return self.profile == "adaptive"
        source = parse(self.source, self.live)
        return source.live and source.kind not in ("images", "webcam")


class IngestSettings(_Settings):
    """The process that reads cameras."""

    watchdog_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="A reader silent for this long (and 3 times its own limits) is given up and replaced (seconds).",
    )
    max_abandoned: int = Field(
        default=8,
        ge=0,
        le=1000,
        description="When more given-up readers hang at once the process ends, to be started afresh (threads).",
    )
    max_pixels: int = Field(
        default=8192 * 8192,
        ge=1,
        le=2**30,
        description="Pictures larger than this are refused before decoding (pixels).",
    )
    stop_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="Longest wait for camera threads when the process stops (seconds)."
    )
