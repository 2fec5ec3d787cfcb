"""Settings of the tracker."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrackerSettings(BaseModel):
    """How detections are joined to tracks."""

    model_config = ConfigDict(extra="forbid")

    # As low as a rule may reasonably ask: a track is not an alert, and a rule has a `min_score` of its own.
    new_score: float = Field(0.3, ge=0, le=1, description="Confidence from which a box may begin a track (0 to 1).")
    high_score: float = Field(
        0.3, ge=0, le=1, description="Confidence from which a box is given to tracks first, also to lost ones (0 to 1)."
    )
    low_score: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Confidence from which a box may continue a track that no better one fits (0 to 1).",
    )
    # ByteTrack's is 0.2. On the simulated street 0.3 kept more ids (benchmarks/tracking.py), 0.1 fewer.
    min_iou: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="Overlap (intersection over union) from which a box can be the object that a track expects.",
    )
    confirm_frames: int = Field(
        2, ge=1, le=100, description="Frames in a row that must show a new object before it counts (frames)."
    )
    lost_s: float = Field(
        2.0,
        ge=0,
        le=60,
        description="How long an object may be out of sight, in the frames' time, and keep its id (seconds).",
    )
    # Somebody who unloads a bag hides a parked car for so long.
    lost_still_s: float = Field(
        30.0,
        ge=0,
        le=86_400,
        description="The same for an object that stood still when it was last seen. Of a gap between two frames one "
        "second counts, since nothing moved while the motion gate left frames out (seconds).",
    )
    # Walking towards a camera from afar changes a box by a quarter in about this time.
    still_after_s: float = Field(
        3.0, ge=0, le=3600, description="An object that has not moved for this long stands still (seconds)."
    )

    @model_validator(mode="after")
    def _scores_are_in_order(self) -> TrackerSettings:
        if not self.low_score <= self.high_score <= self.new_score:
            raise ValueError(
                f"expected low_score <= high_score <= new_score, but they are {self.low_score:g}, "
                f"{self.high_score:g} and {self.new_score:g}"
            )
        return self
