"""absent: nothing of a class has been seen for a while."""

from __future__ import annotations

from sink.rule_settings import AbsentRule
from sink.rules.kind import State
from sink.rules.look import Look
from sink.rules.words import classes, seconds, where
from sink.tracks import Finding

# Between two frames at most so long, or absent_s where that is more: longer, and nobody has watched in between, as
# when a camera was down. A sleeping camera (profile adaptive) sends a frame every ten seconds.
UNWATCHED_US = 60_000_000
THERE = "there"


class AbsentState(State, tag="absent.1"):
    """Of one rule and one camera; kept in Redis from run to run."""

    since_us: int = -1  # last seen, or watched and armed since; -1: no frame yet


def absent(rule: AbsentRule, state: AbsentState, look: Look) -> list[Finding]:
    """One finding while nothing has been there for `absent_s`; to be there it must be in k of the n newest frames.

    Time in which no frames came or the rule was not armed does not count.
    """
    window = state.watch.window
    seen = look.in_zone(rule.zone)
    window.add(look.event_us, [THERE] if seen else [], rule.window_frames)
    matched = window.matches()[THERE]
    unwatched = look.gap_us > max(UNWATCHED_US, rule.absent_s * 1e6)
    there = bool(seen) and matched >= rule.confirm_frames
    if there or unwatched or not look.armed or state.since_us < 0:
        state.since_us = look.event_us
    gone_us = look.event_us - state.since_us
    if there or gone_us < rule.absent_s * 1e6:
        return []
    what = classes(rule.labels)
    return [
        Finding(
            key="absent",
            label=what,
            text=f"no {what}{where(rule.zone)} for {seconds(gone_us)}",
            frames_matched=max(1, window.seen - matched),
            frames_seen=window.seen,
            detail={"absent_s": round(gone_us / 1e6, 3), **({"zone": rule.zone} if rule.zone else {})},
        )
    ]
