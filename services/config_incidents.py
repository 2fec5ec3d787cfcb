"""Incidents that a sleeping camera would end: allowed, and hardly meant."""

from __future__ import annotations

from collections.abc import Iterator

from services.config import Config
from services.yaml_source import KeyPath, Problem, Source, dotted

# Of max_quiet_s: a sleeping camera looks at the first keyframe after it, and those are seconds apart.
LOOKS_APART = 1.5


def short_merges(config: Config, source: Source) -> Iterator[Problem]:
    """One problem where incidents end between the looks of a camera that may sleep, so that each look tells anew."""
    merge_s = config.incidents.merge_s
    short = {
        name: camera.adaptive.max_quiet_s
        for name, camera in config.cameras.items()
        if camera.enabled
        and camera.may_sleep
        and merge_s < LOOKS_APART * camera.adaptive.max_quiet_s
        and any(rule.watches(name) for rule in config.rules.values())
    }
    if not short:
        return
    key: KeyPath = ("incidents", "merge_s")
    longest = max(short, key=lambda name: short[name])
    others = f" and {len(short) - 1} more" if len(short) > 1 else ""
    text = (
        f"{dotted(key)}: found {merge_s:g} s, and while nothing moves camera {longest!r}{others} is looked at every "
        f"{short[longest]:g} s and at the next keyframe: what stays is told again and again; expected at least "
        f"{LOOKS_APART * short[longest]:g}, or a shorter `cameras.{longest}.adaptive.max_quiet_s`, or `profile: all`"
    )
    yield Problem(source.place(key), text)
