"""zone: an object is in a zone, or comes into it."""

from __future__ import annotations

from msgspec import field

from sink.rule_settings import ZoneRule
from sink.rules.kind import State
from sink.rules.look import Look, forget
from sink.tracks import Finding


class ZoneState(State, tag="zone.1"):
    """Of one rule and one camera; kept in Redis from run to run."""

    tracks: dict[int, bool] = field(default_factory=dict)  # whether the object belongs inside, once that is certain


def zone(rule: ZoneRule, state: ZoneState, look: Look) -> list[Finding]:
    """inside: one finding a track that k of the n newest frames show in the zone, this one among them.

    enter: one finding when that comes true of a track that was outside. It is outside again only when none of the n
    newest frames shows it inside, so an object on the edge does not come in again and again.
    """
    forget(state.tracks, look.frame.ended)
    inside = look.in_zone(rule.zone)
    within = {one.track.id for one in inside}
    window = state.watch.window
    window.add(look.event_us, [one.track.id for one in inside], rule.window_frames)
    matches = window.matches()
    for track, _ in look.objects:
        if track.id not in within and (track.id not in state.tracks or not matches[track.id]):
            state.tracks[track.id] = False
    found = []
    for track, _ in inside:
        matched = matches[track.id]
        if matched < rule.confirm_frames:
            continue
        came_in = state.tracks.get(track.id) is False
        state.tracks[track.id] = True
        if rule.when == "inside" or came_in:
            found.append(
                Finding(
                    key=f"track {track.id}",
                    label=track.label,
                    text=f"{track.label} {'in' if rule.when == 'inside' else 'came into'} {rule.zone}",
                    objects=(track,),
                    frames_matched=matched,
                    frames_seen=window.seen,
                    momentary=rule.when == "enter",
                    detail={"zone": rule.zone},
                )
            )
    return found
