"""What passes from the tracker to the rules, and from the rules to the incidents."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct, field

from wire.messages import DetectionRecord

BoxPx = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the source picture


class Track(Struct, frozen=True, array_like=True, gc=False):
    """One object in one frame, under an id that it keeps from frame to frame."""

    id: int  # rises; never given twice to a camera, also not after a restart
    label: str
    score: float
    box: BoxPx  # as detected in this frame
    velocity: tuple[float, float]  # of the box's centre: right and down (pixels a second)
    first_us: int  # event time of the frame it was first seen in
    hits: int  # frames it was detected in, this one included
    still_us: int  # for how long it has not moved (event time); 0 while it moves


@dataclass(frozen=True)
class TrackedFrame:
    """A frame's detections with the ids of their tracks: what a rule sees.

    `tracks` are the objects seen in this frame whose tracks are confirmed, best score first; `ended` are the ids of
    tracks given up since the frame before.
    """

    record: DetectionRecord
    tracks: tuple[Track, ...]
    ended: tuple[int, ...] = ()


class Finding(Struct, frozen=True, gc=False):
    """A rule's condition holds in this frame. The same `key` in later frames is the same incident going on."""

    key: str  # what the incident is about, within its rule and camera: "track 12", "zone porch", "label person"
    label: str  # the class it is about; what the cooldown goes by
    text: str  # one line for people: "person in porch for 12 s"
    objects: tuple[Track, ...] = ()  # what raised it, the first being the best; empty where nothing is seen (absent)
    frames_matched: int = 1  # k-of-n confirmation
    frames_seen: int = 1
    momentary: bool = False  # an instant, such as a line crossing: the incident is over as soon as it has begun
    detail: dict[str, str | float] = field(default_factory=dict)  # zone, line, direction, count, dwell_s, speed_kmh
