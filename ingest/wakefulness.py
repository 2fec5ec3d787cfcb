"""How much of a camera is decoded, why, and how that has been: written by its thread, read by metrics and health."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import structlog

log = structlog.get_logger()

Decoding = Literal[
    "all",  # every frame, as its profile says
    "keyframes",  # keyframes only, as its profile says
    "awake",  # adaptive: every frame, because something moves or did until a moment ago
    "asleep",  # adaptive: some keyframes, because nothing moves
    "always_awake",  # adaptive, but its stream cannot be watched undecoded; `why` says what is in the way
]
WakeReason = Literal[
    "size",  # a packet was larger than usual, and the pixels say that something is there
    "pixels",  # a keyframe's pixels changed, and no packet had said so
    "long_gop",  # the next keyframe did not come before the held packets reached their bound
    "undecodable",  # a keyframe gave no picture of its own
    "clock",  # the stream's timestamps leapt
]


@dataclass(frozen=True)
class WakefulnessSnapshot:
    """One camera at one instant; seconds are of its stream's own time."""

    decoding: Decoding
    why: str
    awake_s: float
    asleep_s: float
    wakes: dict[WakeReason, int]
    false_alarms: int  # packets that were larger than usual while the pixels were still

    @property
    def awake_share(self) -> float:
        """The share of its time (0..1) in which every frame was decoded; 1 before there was any."""
        total_s = self.awake_s + self.asleep_s
        return self.awake_s / total_s if total_s else 1.0


class Wakefulness:
    """Outlives a camera's readers, so that its counters never fall."""

    def __init__(self, camera: str = "") -> None:
        self._camera = camera
        self._lock = threading.Lock()
        self._decoding: Decoding = "all"
        self._why = ""
        self._seconds = {False: 0.0, True: 0.0}  # by whether it slept
        self._wakes: dict[WakeReason, int] = {}
        self._false_alarms = 0

    def begins(self, decoding: Decoding, why: str) -> None:
        """A reader has opened the source."""
        self._set(decoding, why)
        if decoding == "always_awake":
            log.info("adaptive camera is always awake", camera=self._camera, why=why)

    def passed(self, seconds: float) -> None:
        """So much of the stream's time has passed in the present state."""
        with self._lock:
            self._seconds[self._decoding == "asleep"] += seconds

    def slept(self, why: str) -> None:
        """From now on some keyframes only."""
        self._set("asleep", why)
        log.debug("camera sleeps", camera=self._camera, why=why)

    def woke(self, reason: WakeReason, why: str) -> None:
        """From now on every frame."""
        with self._lock:
            self._wakes[reason] = self._wakes.get(reason, 0) + 1
        self._set("awake", why)
        log.debug("camera woke", camera=self._camera, reason=reason, why=why)

    def stays(self, decoding: Decoding, why: str) -> None:
        """Awake as before, for another reason."""
        changed = decoding != self._decoding
        self._set(decoding, why)
        if changed:
            log.info("camera stays awake", camera=self._camera, decoding=decoding, why=why)

    def moves(self) -> None:
        """Awake as before, and rightly so; what keeps it always awake, if anything does, still holds."""
        if self._decoding == "awake":
            self._set("awake", "something moves, or did a moment ago")

    def false_alarm(self) -> None:
        """A packet said that something moves, and the pixels did not."""
        with self._lock:
            self._false_alarms += 1

    def _set(self, decoding: Decoding, why: str) -> None:
        with self._lock:
            self._decoding, self._why = decoding, why

    def snapshot(self) -> WakefulnessSnapshot:
        """All of it, at this instant."""
        with self._lock:
            return WakefulnessSnapshot(
                decoding=self._decoding,
                why=self._why,
                awake_s=self._seconds[False],
                asleep_s=self._seconds[True],
                wakes=dict(self._wakes),
                false_alarms=self._false_alarms,
            )
