"""Lines for people."""

from __future__ import annotations

from collections.abc import Sequence


def where(zone: str) -> str:
    """` in porch`, or nothing for the whole picture."""
    return f" in {zone}" if zone else ""


def classes(labels: Sequence[str]) -> str:
    """What a rule looks for: `person or dog`."""
    return " or ".join(labels) or "object"


def seconds(duration_us: int) -> str:
    """`12 s`, `3 min 5 s`, `2 h 10 min`."""
    total = duration_us // 1_000_000
    minutes, rest_s = divmod(total, 60)
    hours, rest_min = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_min} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
