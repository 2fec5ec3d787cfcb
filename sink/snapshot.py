"""What a sink says of itself, for health and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SinkSnapshot:
    """The sink's counts since it started."""

    connected: bool = False
    trouble: str = ""  # why the last attempt to read or write at Redis failed; empty after one that did not
    evicts: str = ""  # the policy by which Redis may evict our keys; empty where it does not
    read: int = 0  # entries, those below included
    malformed: int = 0  # unreadable, or of a version this build does not know
    trimmed: int = 0  # cut off by the stream's length before they were worked through
    duplicates: int = 0
    gaps: int = 0  # frames that did not come in time, or at all
    late: int = 0  # of these: came after all, and were used out of order
    held: int = 0  # waiting for a missing frame now
    unacknowledged: int = 0  # done, and not yet said so to Redis
    alerts: dict[tuple[str, str], int] = field(default_factory=dict)  # (rule, event): alerts delivered
    alerts_repeated: int = 0  # found again after a restart; were there already
    alerts_waiting: int = 0  # found, and not yet in Redis
    reconnects: int = 0
    cut: int = 0  # older detections that were removed early, because the memory of Redis was full
    cameras: int = 0  # whose lease is ours
    sinks: int = 0  # that share the cameras
    disarmed: int = 0  # rules of these cameras that somebody switched off at run time
    taken_over: int = 0  # times a camera became ours
    lost: int = 0  # times a camera became another's before we released it
    reread: int = 0  # times entries were found that a sink had read without the lease
    cooled_down: int = 0  # incidents kept back by their rule's cooldown
    suppressed: int = 0  # incidents kept back by a camera's budget
    overflowed: int = 0  # findings beyond what a camera may have at once
    time_went_back: int = 0  # times a camera's frames began anew at an earlier time
    bad_boxes: int = 0  # boxes that are no boxes: left out
