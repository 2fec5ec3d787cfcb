"""A frame as a rule sees it: the objects that count, where they stand, and whether the rule is armed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from sink.geometry import Point, inside
from sink.rule_settings import BaseRule
from sink.scene import SceneSettings
from sink.tracks import Track, TrackedFrame

# Tracks remembered by a rule. The tracker says which have ended; this bounds those whose end was missed, as in a frame
# that came late. More objects than anybody detects at once.
MOST_TRACKS = 1000

# Less than a hundredth of a pixel. Who is cut off by the picture's edge stands on it, and shall be in a zone that ends
# there.
_INSET = 1e-6

T = TypeVar("T")


class Spotted(NamedTuple):
    """An object that counts."""

    track: Track
    at: Point  # its anchor, as fractions of the picture


@dataclass(frozen=True)
class Look:
    """What `find` gets: one frame through the eyes of one rule."""

    frame: TrackedFrame
    scene: SceneSettings
    objects: list[Spotted]  # of the whole picture, best score first
    armed: bool
    gap_us: int  # event time since the frame before

    @property
    def event_us(self) -> int:
        """When the frame was taken."""
        return self.frame.record.event_us

    def in_zone(self, name: str) -> list[Spotted]:
        """The objects in a zone; without a name, all. Raises ValueError for one that the scene does not have."""
        if not name:
            return self.objects
        polygon = self.scene.zones.get(name)
        if polygon is None:
            raise ValueError(f"camera {self.frame.record.camera!r} has no zone {name!r} in its scene")
        return [one for one in self.objects if inside((_within(one.at[0]), _within(one.at[1])), polygon)]


def matching(rule: BaseRule, frame: TrackedFrame) -> list[Track]:
    """The tracks of a frame whose class, score and size count."""
    found = []
    for track in frame.tracks:
        if rule.labels and track.label not in rule.labels:
            continue
        # Also leaves out what is not a number.
        if not rule.min_score <= track.score <= 1 or not all(map(math.isfinite, track.box)):
            continue
        left, top, right, bottom = track.box
        if min(right - left, bottom - top) >= rule.min_box_px:
            found.append(track)
    return found


def anchor(rule: BaseRule, track: Track, frame: TrackedFrame) -> Point:
    """The point of a box that stands for the object, as fractions of the picture."""
    left, top, right, bottom = track.box
    y = {"bottom_centre": bottom, "centre": (top + bottom) / 2, "top_centre": top}[rule.anchor]
    return (left + right) / 2 / frame.record.source_width, y / frame.record.source_height


def _within(share: float) -> float:
    return min(max(share, _INSET), 1 - _INSET)


def spot(rule: BaseRule, tracks: list[Track], frame: TrackedFrame, scene: SceneSettings) -> list[Spotted]:
    """The objects outside the scene's masks, with their anchors, best score first."""
    spotted = [Spotted(track, anchor(rule, track, frame)) for track in tracks]
    if scene.masks:
        spotted = [one for one in spotted if not any(inside(one.at, mask) for mask in scene.masks.values())]
    return sorted(spotted, key=lambda one: (-one.track.score, one.track.id))


def forget(tracks: dict[int, T], ended: tuple[int, ...]) -> None:
    """Drop what is remembered of tracks that have ended."""
    for track in ended:
        tracks.pop(track, None)
    while len(tracks) > MOST_TRACKS:
        del tracks[min(tracks)]  # ids rise, so the smallest is the oldest
