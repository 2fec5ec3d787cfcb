"""Objects that stand still do not count, for rules that say so.

How long an object has stood is its track's `still_us`. That alone would find a parked car again whenever its track
breaks: something passes in front of it, the camera reconnects, the tracker begins anew. So the places of objects that
were ignored are remembered, and an object of the same class in such a place is the same object, still standing.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from sink.tracks import BoxPx, Track

# Two detections of one standing object overlap by more, also at night; another object hardly stands so exactly there.
SAME_PLACE_IOU = 0.8
# A place is forgotten when nobody has stood there for so long. Only watched time counts, so a sink or camera that was
# off overnight knows its parked cars in the morning.
FORGOTTEN_AFTER_US = 600_000_000
# Between two frames at most this much counts as watched: more than the gap of a camera that sends a keyframe at times.
WATCHED_GAP_US = 10_000_000
# Places kept of a camera; the one that was empty longest goes first. A full car park has fewer.
MOST_PLACES = 500


class Place(Struct, array_like=True):
    """Where an object stands that is ignored."""

    label: str
    box: BoxPx
    empty_us: int = 0  # watched time since somebody was last seen there


def moving(tracks: Iterable[Track], places: list[Place], ignore_after_us: int, gap_us: int) -> set[int]:
    """The ids of what still counts; `places` is brought up to date. `gap_us`: time since the frame before."""
    passed_us = min(gap_us, WATCHED_GAP_US)
    for place in places:
        place.empty_us += passed_us
    counting = set()
    for track in tracks:
        known = _place_of(track, places)
        if track.still_us < ignore_after_us and known is None:
            counting.add(track.id)
            continue
        if known is None:
            places.append(Place(track.label, track.box))
        else:
            known.empty_us = 0
            if track.still_us >= ignore_after_us:
                known.box = track.box  # follows the slow drift of boxes with the light
    places[:] = [place for place in places if place.empty_us < FORGOTTEN_AFTER_US]
    if len(places) > MOST_PLACES:
        places.sort(key=lambda place: place.empty_us)
        del places[MOST_PLACES:]
    return counting


def _place_of(track: Track, places: list[Place]) -> Place | None:
    for place in places:
        if place.label == track.label and iou(place.box, track.box) >= SAME_PLACE_IOU:
            return place
    return None


def iou(one: BoxPx, other: BoxPx) -> float:
    """Intersection over union of two boxes (0 to 1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return both / (areas - both)
