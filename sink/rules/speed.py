"""speed: an object moves fast over calibrated ground."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct, field

from sink.rule_settings import SpeedRule
from sink.rules.kind import State
from sink.rules.look import Look, forget
from sink.rules.words import where
from sink.scene import to_ground
from sink.tracks import Finding

# A speed is believed once the places it is taken from span this share of `measure_s`.
LEAST_SPAN = 0.5
# Metres a second to km/h.
KMH = 3.6
# Places kept of an object: four a second over the longest `measure_s`. Where frames come faster, every so many
# milliseconds one is kept.
MOST_PLACES = 240


class At(Struct, array_like=True):
    """Where an object was on the ground (metres), and when."""

    event_us: int
    x: float
    y: float


class SpeedState(State, tag="speed.1"):
    """Of one rule and one camera; kept in Redis from run to run."""

    tracks: dict[int, list[At]] = field(default_factory=dict)


def speed(rule: SpeedRule, state: SpeedState, look: Look) -> list[Finding]:
    """One finding a track that is faster than `over_kmh` in k of the n newest frames, this one among them."""
    forget(state.tracks, look.frame.ended)
    ground = look.scene.ground
    if ground is None:
        raise ValueError(
            f"camera {look.frame.record.camera!r} has no `ground` in its scene, by which speed is measured"
        )
    fast: dict[int, float] = {}
    inside = look.in_zone(rule.zone)
    for track, at in inside:
        place = to_ground(ground, at)
        if place is None:
            continue
        places = state.tracks.setdefault(track.id, [])
        _remember(places, At(look.event_us, *place), rule.measure_s * 1e6)
        kmh = speed_kmh(places, rule.measure_s * 1e6)
        if kmh is not None and kmh > rule.over_kmh:
            fast[track.id] = kmh
    window = state.watch.window
    window.add(look.event_us, fast, rule.window_frames)
    matches = window.matches()
    found = []
    for track, _ in inside:
        matched = matches[track.id]
        if track.id in fast and matched >= rule.confirm_frames:
            kmh = round(fast[track.id], 1)
            found.append(
                Finding(
                    key=f"track {track.id}",
                    label=track.label,
                    text=f"{track.label}{where(rule.zone)} at {kmh:g} km/h, over {rule.over_kmh:g}",
                    objects=(track,),
                    frames_matched=matched,
                    frames_seen=window.seen,
                    detail={"speed_kmh": kmh, **({"zone": rule.zone} if rule.zone else {})},
                )
            )
    return found


def _remember(places: list[At], place: At, measure_us: float) -> None:
    """Add the newest place; what is older than the measure goes."""
    places.append(place)
    while place.event_us - places[0].event_us > measure_us:
        del places[0]
    if len(places) > MOST_PLACES:
        del places[1:-1:2]


def speed_kmh(places: Sequence[At], measure_us: float) -> float | None:
    """The speed of the straight line that fits the places best (least squares); None where they span too little time.

    A box's edges jitter by some pixels. The difference between two frames is mostly that jitter; a line through a
    second of frames is not.
    """
    last = places[-1]
    if last.event_us - places[0].event_us < LEAST_SPAN * measure_us or len(places) < 2:
        return None
    times = [(one.event_us - last.event_us) / 1e6 for one in places]
    middle = sum(times) / len(times)
    spread = sum((time - middle) ** 2 for time in times)
    right = sum((time - middle) * one.x for time, one in zip(times, places, strict=True)) / spread
    down = sum((time - middle) * one.y for time, one in zip(times, places, strict=True)) / spread
    return math.hypot(right, down) * KMH
