"""count: more, or fewer, objects at once than expected."""

from __future__ import annotations

from sink.rule_settings import CountRule
from sink.rules.kind import State
from sink.rules.look import Look
from sink.rules.words import classes, where
from sink.tracks import Finding


class CountState(State, tag="count.1"):
    """Of one rule and one camera; kept in Redis from run to run."""


def count(rule: CountRule, state: CountState, look: Look) -> list[Finding]:
    """One finding when k of the n newest frames, this one among them, show too many, and one when too few."""
    inside = look.in_zone(rule.zone)
    number = len(inside)
    wrong: dict[str, int] = {}  # what is wrong: the bound
    if rule.over is not None and number > rule.over:
        wrong["over"] = rule.over
    if rule.under is not None and number < rule.under:
        wrong["under"] = rule.under
    window = state.watch.window
    if not window.add(look.event_us, wrong, rule.window_frames):
        return []
    matches = window.matches()
    found = []
    for key, bound in wrong.items():
        matched = matches[key]
        if matched >= rule.confirm_frames:
            what = classes(rule.labels)
            found.append(
                Finding(
                    key=key,
                    label=what,
                    text=f"{number} x {what}{where(rule.zone)}, {'more' if key == 'over' else 'fewer'} than {bound}",
                    objects=tuple(one.track for one in inside),
                    frames_matched=matched,
                    frames_seen=window.seen,
                    detail={"count": number, key: bound, **({"zone": rule.zone} if rule.zone else {})},
                )
            )
    return found
