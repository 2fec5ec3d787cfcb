"""presence: k of the n newest frames show an object of a class."""

from __future__ import annotations

from sink.rule_settings import PresenceRule
from sink.rules.kind import State
from sink.rules.look import Look
from sink.rules.window import Key
from sink.rules.words import where
from sink.tracks import Finding, Track


class PresenceState(State, tag="presence.2"):
    """Of one rule and one camera; kept in Redis from run to run."""


def presence(rule: PresenceRule, state: PresenceState, look: Look) -> list[Finding]:
    """One finding a label, or a track: k of the n newest frames show it, this one among them.

    A frame that comes late takes its place by its time, if that is still among the n newest.
    """
    shown: dict[Key, list[Track]] = {}
    for spotted in look.in_zone(rule.zone):
        track = spotted.track
        shown.setdefault(track.label if rule.by == "label" else track.id, []).append(track)
    window = state.watch.window
    if not window.add(look.event_us, shown, rule.window_frames):
        return []
    matches = window.matches()
    found = []
    for key, tracks in shown.items():
        matched = matches[key]
        if matched >= rule.confirm_frames:
            label = tracks[0].label
            found.append(
                Finding(
                    key=f"{rule.by} {key}",
                    label=label,
                    text=f"{label}{where(rule.zone) or ' seen'}",
                    objects=tuple(tracks),
                    frames_matched=matched,
                    frames_seen=window.seen,
                    detail={"zone": rule.zone} if rule.zone else {},
                )
            )
    return found
