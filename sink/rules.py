"""Rules: from the frames of a camera to findings.

A rule kind is a state and a step. The step sees one frame, changes the state, and says what it found. It has no clock
and does no input or output: time is the frames' `event_us`, so a replay finds the same. A new kind is one more entry
of KINDS.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, TypeVar

from msgspec import Struct, field

from sink.settings import RuleSettings
from wire.messages import Detection, DetectionRecord


@dataclass(frozen=True)
class Finding:
    """What a rule found in a frame."""

    detection: Detection  # the best of the label in the frame
    frames_matched: int
    frames_seen: int


class PresenceState(Struct, tag="presence.1"):
    """Of one rule and one camera; kept in Redis from run to run."""

    session: str = ""
    newest_us: int = -1
    # The newest frames by event time: when, and which labels they showed.
    window: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    alerted_us: dict[str, int] = field(default_factory=dict)  # label: event time of its last alert


def presence(rule: RuleSettings, state: PresenceState, record: DetectionRecord) -> list[Finding]:
    """k of the n newest frames show a label, this one among them, and its cooldown is over: one finding a label.

    A frame that comes late takes its place by its time, if that is still among the n newest.
    """
    if record.session != state.session:
        # Another run of the reader: frames before and after it do not confirm each other. One that begins earlier than
        # the last ended is the same material again, and finds the same again.
        if record.event_us < state.newest_us:
            state.alerted_us.clear()
            state.newest_us = -1
        state.session = record.session
        state.window.clear()
    state.newest_us = max(state.newest_us, record.event_us)
    best = _best_matches(rule, record)
    if len(state.window) >= rule.window_frames and record.event_us < state.window[0][0]:
        return []  # later than all that count
    insort(state.window, (record.event_us, tuple(best)), key=itemgetter(0))
    del state.window[: -rule.window_frames]
    found = []
    for label, detection in best.items():
        matched = sum(label in labels for _, labels in state.window)
        if matched >= rule.confirm_frames and not _cooling_down(rule, state, label, record.event_us):
            state.alerted_us[label] = record.event_us
            found.append(Finding(detection, matched, len(state.window)))
    return found


def _best_matches(rule: RuleSettings, record: DetectionRecord) -> dict[str, Detection]:
    """The most confident box of each label that the rule counts."""
    best: dict[str, Detection] = {}
    for detection in record.detections:
        if rule.labels and detection.label not in rule.labels:
            continue
        # Also leaves out what is not a number.
        if not rule.min_score <= detection.score <= 1 or not all(map(math.isfinite, detection.box)):
            continue
        left, top, right, bottom = detection.box
        if min(right - left, bottom - top) < rule.min_box_px:
            continue
        if detection.label not in best or detection.score > best[detection.label].score:
            best[detection.label] = detection
    return best


def _cooling_down(rule: RuleSettings, state: PresenceState, label: str, event_us: int) -> bool:
    last_us = state.alerted_us.get(label)
    # Both ways in time: a frame that comes late must not alert just before an alert.
    return last_us is not None and abs(event_us - last_us) < rule.cooldown_s * 1e6


S = TypeVar("S", bound=Struct)

# The states of all kinds; a union once there is a second.
RuleState = PresenceState


@dataclass(frozen=True)
class Kind(Generic[S]):
    """A kind of rule."""

    new_state: Callable[[], S]
    step: Callable[[RuleSettings, S, DetectionRecord], list[Finding]]


KINDS: dict[str, Kind[RuleState]] = {"presence": Kind(PresenceState, presence)}
