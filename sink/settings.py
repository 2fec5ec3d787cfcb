"""Settings of the rules and of the sink."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RuleSettings(BaseModel):
    """One rule: raise an alert when a camera shows an object of a class in enough of its newest frames."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["presence"] = Field(
        "presence", description="What the rule looks for. presence: an object is in the picture."
    )
    cameras: Literal["*"] | list[str] = Field(
        "*", description='Names of the cameras it watches, or "*" for all of them.'
    )
    labels: list[str] = Field(
        default_factory=list, max_length=1000, description="Classes it looks for; empty: every class of the model."
    )
    min_score: float = Field(0.5, ge=0, le=1, description="Confidence from which a box counts (0 to 1).")
    min_box_px: float = Field(
        0, ge=0, le=100_000, description="Shorter side from which a box counts (pixels of the source picture)."
    )
    confirm_frames: int = Field(
        3, ge=1, le=1000, description="k of k-of-n: frames that must show the class before an alert is raised (frames)."
    )
    window_frames: int = Field(
        5, ge=1, le=1000, description="n of k-of-n: the newest detected frames that are looked at (frames)."
    )
    cooldown_s: float = Field(
        30,
        ge=0,
        le=86_400,
        description="No second alert of the same class and camera within this, in the frames' time (seconds).",
    )

    @model_validator(mode="after")
    def _window_holds_confirmation(self) -> RuleSettings:
        if self.confirm_frames > self.window_frames:
            raise ValueError(
                f"confirm_frames ({self.confirm_frames}) is more than window_frames ({self.window_frames}), "
                "so no alert would ever be raised: make the window at least as large"
            )
        return self

    def watches(self, camera: str) -> bool:
        """Whether the rule looks at this camera."""
        return self.cameras == "*" or camera in self.cameras


class SinkSettings(BaseModel):
    """The sink process."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        "sink-0",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Consumer name in Redis: the same after a restart, and of one running sink only.",
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
    same_host: bool = Field(
        True, description="The cameras' ingest runs on this host, so that latency_ms of an alert can be measured."
    )
