"""What the tracker knows from frame to frame; kept in Redis, so that another process can go on with it."""

from __future__ import annotations

from msgspec import Struct, field

from sink.tracking.kalman import Motion
from sink.tracking.stillness import Still


class LiveTrack(Struct, array_like=True, gc=False):
    """One object that is followed."""

    id: int
    label: str
    motion: Motion
    still: Still
    first_us: int
    seen_us: int  # event time of the frame it was last detected in
    hits: int = 1
    misses: int = 0  # frames since then
    missed_us: int = 0  # time since then, of each gap between frames at most a second
    confirmed: bool = False
    votes: int = 1  # for `label`: frames that said so, less those that said otherwise; bounded


class TrackerState(Struct, array_like=True, tag="tracker.2"):
    """Of one camera."""

    session: str = ""
    seq: int = -1  # of the newest frame
    event_us: int = -1  # of the newest frame
    next_id: int = 1
    tracks: list[LiveTrack] = field(default_factory=list)
