"""dwell: an object stays in a zone, or in the picture."""

from __future__ import annotations

from msgspec import Struct, field

from sink.rule_settings import DwellRule
from sink.rules.kind import State
from sink.rules.look import Look, forget
from sink.rules.words import seconds, where
from sink.tracks import Finding


class Stay(Struct, array_like=True):
    """An object's stay (event time, us)."""

    since_us: int
    outside_us: int = -1  # since when it has been seen outside; -1: it is inside


class DwellState(State, tag="dwell.1"):
    """Of one rule and one camera; kept in Redis from run to run."""

    tracks: dict[int, Stay] = field(default_factory=dict)


def dwell(rule: DwellRule, state: DwellState, look: Look) -> list[Finding]:
    """One finding a track that has been in the zone for `dwell_s`, and is there in k of the n newest frames.

    Without a zone an object's stay begins when its track does. Time in which it is not seen counts as staying, as long
    as its track lives.
    """
    forget(state.tracks, look.frame.ended)
    inside = look.in_zone(rule.zone)
    window = state.watch.window
    window.add(look.event_us, [one.track.id for one in inside], rule.window_frames)
    _leave(rule, state, look, {one.track.id for one in inside})
    matches = window.matches()
    found = []
    for track, _ in inside:
        began_us = look.event_us if rule.zone else track.first_us
        stay = state.tracks.setdefault(track.id, Stay(began_us))
        stay.outside_us = -1
        matched, stayed_us = matches[track.id], look.event_us - stay.since_us
        if stayed_us >= rule.dwell_s * 1e6 and matched >= rule.confirm_frames:
            found.append(
                Finding(
                    key=f"track {track.id}",
                    label=track.label,
                    text=f"{track.label}{where(rule.zone)} for {seconds(stayed_us)}",
                    objects=(track,),
                    frames_matched=matched,
                    frames_seen=window.seen,
                    detail={"dwell_s": round(stayed_us / 1e6, 3), **({"zone": rule.zone} if rule.zone else {})},
                )
            )
    return found


def _leave(rule: DwellRule, state: DwellState, look: Look, inside: set[int]) -> None:
    """End the stays of objects that have been outside for long enough."""
    for track, _ in look.objects:
        stay = state.tracks.get(track.id)
        if stay is None or track.id in inside:
            continue
        if stay.outside_us < 0:
            stay.outside_us = look.event_us
        if look.event_us - stay.outside_us >= rule.grace_s * 1e6:
            del state.tracks[track.id]
