"""line: an object crosses a line."""

from __future__ import annotations

from msgspec import Struct, field

from sink.geometry import crossings
from sink.rule_settings import LineRule
from sink.rules.kind import State
from sink.rules.look import Look, forget
from sink.tracks import Finding


class LineTrack(Struct, array_like=True):
    """Where an object was last, and how it stands to the line."""

    x: float
    y: float
    net: int = 0  # crossings not told yet: above 0 in, below 0 out
    frames: int = 0  # for how many frames in a row it has been beyond


class LineState(State, tag="line.1"):
    """Of one rule and one camera; kept in Redis from run to run."""

    tracks: dict[int, LineTrack] = field(default_factory=dict)


def line(rule: LineRule, state: LineState, look: Look) -> list[Finding]:
    """One finding when a track's anchor has gone over the line and stayed beyond for `confirm_frames` of its frames.

    Who comes back before that has not crossed. A way between two frames counts as straight.
    """
    forget(state.tracks, look.frame.ended)
    points = look.scene.lines.get(rule.line)
    if points is None:
        raise ValueError(f"camera {look.frame.record.camera!r} has no line {rule.line!r} in its scene")
    found = []
    counting = {one.track.id for one in look.in_zone(rule.zone)}
    for track, at in look.objects:
        one = state.tracks.get(track.id)
        if one is None:
            state.tracks[track.id] = LineTrack(*at)
            continue
        one.net += crossings((one.x, one.y), at, points)
        one.x, one.y = at
        one.frames = one.frames + 1 if one.net else 0
        if one.frames < rule.confirm_frames:
            continue
        direction, frames = "in" if one.net > 0 else "out", one.frames
        one.net = one.frames = 0
        if rule.direction in ("any", direction) and track.id in counting:
            found.append(
                Finding(
                    # With the direction, so that coming back is an incident of its own and not the first one going on.
                    key=f"track {track.id} {direction}",
                    label=track.label,
                    text=f"{track.label} crossed {rule.line}, {direction}",
                    objects=(track,),
                    frames_matched=frames,
                    frames_seen=frames,
                    momentary=True,
                    detail={"line": rule.line, "direction": direction},
                )
            )
    return found
