"""How long an object has not moved: as long as its box lies on the place where it came to rest.

The place stays as it was, so that creeping counts as moving; a box that is off it for a moment (something passes in
front, a bad detection) does not.
"""

from __future__ import annotations

from msgspec import Struct

from sink.tracks import BoxPx

NEVER = -1
# Overlap (intersection over union) from which a box is in its place. Filtered boxes of what stands still overlap by
# more than 0.9; this is a shift by a seventh of the width.
_SAME_PLACE = 0.75
_LEAVES_AFTER_US = 500_000


class Still(Struct, array_like=True, gc=False):
    """Where an object is or was at rest, and since when (event time)."""

    place: BoxPx
    since_us: int
    left_us: int = NEVER  # since when it has been seen elsewhere; NEVER while it is in its place


def look(still: Still, box: BoxPx, event_us: int) -> None:
    """Take in where the object is now, in place."""
    if overlap(still.place, box) >= _SAME_PLACE:
        still.left_us = NEVER
    elif still.left_us == NEVER:
        still.left_us = event_us
    elif event_us - still.left_us >= _LEAVES_AFTER_US:
        still.place, still.since_us, still.left_us = box, event_us, NEVER


def overlap(one: BoxPx, other: BoxPx) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return common / (areas - common)
