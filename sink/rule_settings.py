"""Settings of the rules: one model a kind, together the union RuleSettings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, model_validator

from sink.schedule import ScheduleSettings

DAY_S = 86_400


class BaseRule(BaseModel):
    """What rules of every kind have in common: where they look, what counts, and when."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    armed: bool = Field(True, description="False: keep the rule, raise nothing.")
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
    zone: str = Field(
        "", max_length=64, description="Zone of the camera's scene in which objects count; empty: the whole picture."
    )
    anchor: Literal["bottom_centre", "centre", "top_centre"] = Field(
        "bottom_centre",
        description="Point of the box that must lie in a zone, or cross a line; bottom_centre is where things stand.",
    )
    ignore_stationary_s: float = Field(
        0,
        ge=0,
        le=DAY_S,
        description="An object that has stood still for this long no longer counts, until it moves; its place is "
        "remembered over restarts. 0: it counts (seconds).",
    )
    confirm_frames: int = Field(
        3, ge=1, le=1000, description="k of k-of-n: frames that must show it before it is believed (frames)."
    )
    window_frames: int = Field(
        5, ge=1, le=1000, description="n of k-of-n: the newest detected frames that are looked at (frames)."
    )
    cooldown_s: float = Field(
        30,
        ge=0,
        le=DAY_S,
        description="No second alert of the same class and camera within this; what lasts longer is told then, in the "
        "frames' time (seconds).",
    )
    schedule: ScheduleSettings | None = Field(None, description="When it is armed; without one, always.")

    @model_validator(mode="after")
    def _window_holds_confirmation(self) -> BaseRule:
        if self.confirm_frames > self.window_frames:
            raise ValueError(
                f"confirm_frames ({self.confirm_frames}) is more than window_frames ({self.window_frames}), "
                "so no alert would ever be raised: make the window at least as large"
            )
        return self

    def watches(self, camera: str) -> bool:
        """Whether the rule looks at this camera."""
        return self.cameras == "*" or camera in self.cameras


class PresenceRule(BaseRule):
    """An object of a class is in the picture, or in a zone."""

    kind: Literal["presence"] = Field("presence", description="presence: an object is in the picture.")
    by: Literal["label", "track"] = Field(
        "label", description="An incident for all objects of a class together, or for each object by itself."
    )


class ZoneRule(BaseRule):
    """An object is in a zone, or comes into it."""

    kind: Literal["zone"] = Field("zone", description="zone: an object is in a zone, or comes into it.")
    zone: str = Field(min_length=1, max_length=64, description="Zone of the camera's scene.")
    when: Literal["inside", "enter"] = Field(
        "inside",
        description="inside: for as long as the object is there, however it came. enter: the moment in which an object "
        "that was seen outside comes in.",
    )


class LineRule(BaseRule):
    """An object crosses a line."""

    kind: Literal["line"] = Field("line", description="line: an object crosses a line.")
    line: str = Field(min_length=1, max_length=64, description="Line of the camera's scene.")
    direction: Literal["any", "in", "out"] = Field(
        "any",
        description="in: from the left to the right of somebody who walks along the line from its first point; out: "
        "the other way.",
    )
    # Two, because an object that stands on the line jitters over it and back from frame to frame; three would miss
    # those that leave the picture just behind it.
    confirm_frames: int = Field(
        2, ge=1, le=1000, description="Frames in a row in which the object must be seen beyond the line (frames)."
    )


class DwellRule(BaseRule):
    """An object stays."""

    kind: Literal["dwell"] = Field("dwell", description="dwell: an object stays in a zone, or in the picture.")
    dwell_s: float = Field(gt=0, le=DAY_S, description="It has been there for this long (seconds).")
    grace_s: float = Field(
        1, ge=0, le=3600, description="Steps out of the zone shorter than this do not count as leaving (seconds)."
    )


class CountRule(BaseRule):
    """More or fewer objects than expected."""

    kind: Literal["count"] = Field("count", description="count: too many or too few objects at once.")
    over: int | None = Field(None, ge=0, le=100_000, description="Found when there are more than this (objects).")
    under: int | None = Field(None, ge=1, le=100_000, description="Found when there are fewer than this (objects).")

    @model_validator(mode="after")
    def _has_a_bound(self) -> CountRule:
        if self.over is None and self.under is None:
            raise ValueError("neither `over` nor `under`; expected a number of objects for one of them, or both")
        if self.over is not None and self.under is not None and self.under > self.over + 1:
            raise ValueError(f"under ({self.under}) is more than over ({self.over}) + 1, so every count would be found")
        return self


class AbsentRule(BaseRule):
    """Nothing of a class has been seen for a while."""

    kind: Literal["absent"] = Field("absent", description="absent: nothing of these classes has been seen for a while.")
    absent_s: float = Field(
        gt=0, le=DAY_S, description="For this long, counted from the first frame seen while armed (seconds)."
    )
    # One: a false alarm because of a class that is seen in every other frame only would be the likelier mistake.
    confirm_frames: int = Field(
        1, ge=1, le=1000, description="k of k-of-n: frames that must show it for it to be there (frames)."
    )


class SpeedRule(BaseRule):
    """An object moves fast over calibrated ground."""

    kind: Literal["speed"] = Field("speed", description="speed: an object is faster than allowed; needs scene.ground.")
    over_kmh: float = Field(gt=0, le=1000, description="Found above this speed over the ground (km/h).")
    measure_s: float = Field(
        1, ge=0.1, le=60, description="Speed is measured over this long; longer is steadier (seconds)."
    )


def _tag(data: Any) -> str:
    """The union's tag of a rule: not the kind alone, which may also be the name of a setting (`zone`, `line`)."""
    kind = data.get("kind", "presence") if isinstance(data, dict) else getattr(data, "kind", None)
    return f"kind {kind}"


RuleSettings: TypeAlias = Annotated[
    Annotated[PresenceRule, Tag("kind presence")]
    | Annotated[ZoneRule, Tag("kind zone")]
    | Annotated[LineRule, Tag("kind line")]
    | Annotated[DwellRule, Tag("kind dwell")]
    | Annotated[CountRule, Tag("kind count")]
    | Annotated[AbsentRule, Tag("kind absent")]
    | Annotated[SpeedRule, Tag("kind speed")],
    Discriminator(_tag),
]

_any_rule: TypeAdapter[RuleSettings] = TypeAdapter(RuleSettings)


def rule_settings(data: Any) -> RuleSettings:
    """A rule of whatever kind from plain data; without `kind` it is presence. Raises pydantic.ValidationError."""
    return _any_rule.validate_python(data)
