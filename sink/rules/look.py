"""A frame as a rule sees it: the objects that count, where they stand, and whether the rule is armed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sink.geometry import Point, inside
from sink.rule_settings import BaseRule
from sink.scene import SceneSettings
from sink.tracks import Track, TrackedFrame

# Tracks remembered by a rule. The tracker says which have ended; this bounds those whose end was missed, as in a frame
# that came late. More objects than anybody detects at once.
MOST_TRACKS = 1000

# Less than a hundredth of a pixel. Who is cut off by the picture's edge stands on it, and shall be in a zone or a mask
# that ends there.
_INSET = 1e-6

T = TypeVar("T")


class Spotted(NamedTuple):
    """An object that counts."""

    track: Track
    at: Point  # its anchor, as fractions of the picture


Seen = tuple[list[Spotted], dict[str, list[Spotted]]]  # of the whole picture, best score first; of zones looked at


@dataclass(frozen=True)
class Look:
    """What `find` gets: one frame through the eyes of one rule."""

    frame: TrackedFrame
    scene: SceneSettings
    seen: Seen
    armed: bool
    gap_us: int  # event time since the frame before

    @property
    def event_us(self) -> int:
        """When the frame was taken."""
        return self.frame.record.event_us

    @property
    def objects(self) -> list[Spotted]:
        """The objects of the whole picture, best score first."""
        return self.seen[0]

    def in_zone(self, name: str) -> list[Spotted]:
        """The objects in a zone; without a name, all. Raises ValueError for one that the scene does not have."""
        everywhere, zones = self.seen
        if not name:
            return everywhere
        if name not in zones:
            polygon = self.scene.zones.get(name)
            if polygon is None:
                raise ValueError(f"camera {self.frame.record.camera!r} has no zone {name!r} in its scene")
            zones[name] = [one for one in everywhere if inside(_within(one.at), polygon)]
        return zones[name]


class Sights:
    """One frame for all rules of a camera: those that look for the same objects share the work of finding them."""

    def __init__(self, frame: TrackedFrame, scene: SceneSettings) -> None:
        self._frame = frame
        self._scene = scene
        self._seen: dict[tuple[Any, ...], Seen] = {}

    def of(self, rule: BaseRule) -> Seen:
        """The objects that count for a rule; those that stand still among them."""
        eye = (*rule.labels, rule.min_score, rule.min_box_px, rule.anchor)
        seen = self._seen.get(eye)
        if seen is None:
            seen = self._seen[eye] = (self._spot(rule), {})
        return seen

    def _spot(self, rule: BaseRule) -> list[Spotted]:
        """The tracks whose class, score and size count, outside the scene's masks, with their anchors."""
        labels, min_score, min_box_px, anchor = set(rule.labels), rule.min_score, rule.min_box_px, rule.anchor
        width, height = self._frame.record.source_width, self._frame.record.source_height
        spotted = []
        for track in self._frame.tracks:
            left, top, right, bottom = track.box
            # Also leaves out what is not a number.
            if (
                (not labels or track.label in labels)
                and min_score <= track.score <= 1
                and math.isfinite(left + top + right + bottom)
                and right - left >= min_box_px <= bottom - top
            ):
                y = bottom if anchor == "bottom_centre" else top if anchor == "top_centre" else (top + bottom) / 2
                spotted.append(Spotted(track, ((left + right) / 2 / width, y / height)))
        masks = self._scene.masks.values()
        if masks:
            spotted = [one for one in spotted if not any(inside(_within(one.at), mask) for mask in masks)]
        return sorted(spotted, key=lambda one: (-one.track.score, one.track.id))


def _within(at: Point) -> Point:
    x, y = at
    if _INSET <= x <= 1 - _INSET and _INSET <= y <= 1 - _INSET:
        return at
    return min(max(x, _INSET), 1 - _INSET), min(max(y, _INSET), 1 - _INSET)


def forget(tracks: dict[int, T], ended: tuple[int, ...]) -> None:
    """Drop what is remembered of tracks that have ended."""
    for track in ended:
        tracks.pop(track, None)
    while len(tracks) > MOST_TRACKS:
        del tracks[min(tracks)]  # ids rise, so the smallest is the oldest
