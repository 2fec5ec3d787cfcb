"""Rules: from the tracked frames of a camera to findings.

Enters: TrackedFrame, one after the other, with the rule's settings and the camera's scene. Leaves: Finding, in every
frame in which the rule's condition holds; what is an incident, and when it is told, is decided after the rules.
A rule has no clock and does no input or output: time is the frames' `event_us`, so a replay finds the same. All it
remembers is its state, which is kept in Redis. A new kind is its settings, a state, a `find`, and an entry of KINDS.
"""

from __future__ import annotations

from typing import Any

from sink.rules.absent import AbsentState, absent
from sink.rules.checks import Slip, slips
from sink.rules.count import CountState, count
from sink.rules.dwell import DwellState, dwell
from sink.rules.kind import Kind
from sink.rules.line import LineState, line
from sink.rules.presence import PresenceState, presence
from sink.rules.speed import SpeedState, speed
from sink.rules.zone import ZoneState, zone

__all__ = ["KINDS", "Kind", "RuleState", "Slip", "slips"]

RuleState = PresenceState | ZoneState | LineState | DwellState | CountState | AbsentState | SpeedState

# Any: each kind has its own settings and state, and which belong together is known only by their name.
KINDS: dict[str, Kind[Any, Any]] = {
    "presence": Kind(PresenceState, presence, takes_late=True),
    "zone": Kind(ZoneState, zone),
    "line": Kind(LineState, line),
    "dwell": Kind(DwellState, dwell),
    "count": Kind(CountState, count, takes_late=True),
    "absent": Kind(AbsentState, absent),
    "speed": Kind(SpeedState, speed),
}
