"""What the system says of itself: a camera is down, its picture is frozen, the detectors are slower than promised.

Time here is the Redis server's: a camera that is down has no frames whose time could be gone by.
"""

from __future__ import annotations

import math

from msgspec import Struct

from sink.incident_settings import SystemSettings
from sink.tracks import Finding
from wire.cameras import CameraStatus
from wire.messages import DetectionRecord

CAMERA_DOWN = "system.camera_down"
PICTURE_FROZEN = "system.picture_frozen"
DETECTOR_SLOW = "system.detector_slow"
RULES = (CAMERA_DOWN, PICTURE_FROZEN, DETECTOR_SLOW)

# The mean follows within this (seconds of the frames' time): one slow frame is no slow detector.
MEAN_S = 10.0
# Frames that come so much later than those before begin the mean anew (seconds): before it was another time.
MEAN_GAP_S = 60.0
# States of a camera that sends no more frames: how fast the last ones were detected is over.
_OVER = ("ended", "failed", "stopped")


class SystemState(Struct, array_like=True):
    """Of one camera; kept in Redis."""

    mean_ms: float = 0.0  # from capture to the end of inference
    newest_us: int = -1
    slow_since_us: int = 0  # server time; 0: the promise is kept
    heard_us: int = 0  # server time of the first look after the newest detections


class SystemWatch:
    """Watches one camera. The same observations give the same findings."""

    def __init__(self, settings: SystemSettings, state: SystemState) -> None:
        self._settings = settings
        self.state = state
        self._heard = False  # something since the last look

    def observe(self, record: DetectionRecord) -> None:
        """The detectors were as quick as this."""
        took_ms = (record.inference_end_ns - record.captured_ns) / 1e6
        self._heard = True
        state = self.state
        past_s = (record.event_us - state.newest_us) / 1e6
        if state.newest_us < 0 or abs(past_s) > MEAN_GAP_S:
            state.mean_ms, state.newest_us = took_ms, record.event_us
        elif past_s > 0:
            state.mean_ms += (took_ms - state.mean_ms) * -math.expm1(-past_s / MEAN_S)
            state.newest_us = record.event_us

    def findings(self, now_us: int, status: CameraStatus | None, listening_us: int = 0) -> list[tuple[str, Finding]]:
        """(rule, finding) of what is wrong now; without a `status` nothing is known of the camera.

        `listening_us`: since when somebody listens (server time). A silence counts from then on: a report of before
        may be as old as the last run, and says nothing of an ingest that has just started too.
        """
        self._forget(now_us, status)
        found = []
        down = _down(self._settings, now_us, status, listening_us) if status else None
        if down:
            found.append(down)
        slow = None if down else self._slow(now_us, status)
        if slow:
            found.append((DETECTOR_SLOW, slow))
        return found

    def _forget(self, now_us: int, status: CameraStatus | None) -> None:
        """Without detections nothing is known of how fast they are; the last ones are not slow for ever."""
        state = self.state
        if self._heard or not state.heard_us:
            state.heard_us, self._heard = now_us, False
        over = status is not None and status.state in _OVER
        if over or now_us - state.heard_us > MEAN_GAP_S * 1e6:
            state.mean_ms, state.newest_us, state.slow_since_us = 0.0, -1, 0

    def _slow(self, now_us: int, status: CameraStatus | None) -> Finding | None:
        settings, state = self._settings, self.state
        # The frames of a file wait in line by intention.
        promised = status is None or status.live
        if not promised or state.mean_ms <= settings.detector_slow_ms:
            state.slow_since_us = 0
        elif not state.slow_since_us:
            state.slow_since_us = now_us
        unanswered_s = (status.written_us - status.detected_us) / 1e6 if status else 0.0
        if unanswered_s >= settings.detector_slow_s:
            text = "frames come and no detector answers"
            return Finding("detector", "", text, detail={"unanswered_s": round(unanswered_s, 1)})
        # As far as anything was heard: one slow frame and then none is not slow for as long.
        if state.slow_since_us and state.heard_us - state.slow_since_us >= settings.detector_slow_s * 1e6:
            text = f"detections take {state.mean_ms:.0f} ms, more than {settings.detector_slow_ms:g}"
            return Finding("detector", "", text, detail={"detection_ms": round(state.mean_ms, 1)})
        return None


def _down(settings: SystemSettings, now_us: int, status: CameraStatus, listening_us: int) -> tuple[str, Finding] | None:
    silent_s = (now_us - max(status.written_us, listening_us)) / 1e6
    if status.state == "stopped":
        return None  # somebody wanted it so
    if silent_s >= settings.ingest_silent_s:
        text = "camera down: its ingest process says nothing"
        return CAMERA_DOWN, Finding("camera", "", text, detail={"reason": "ingest_silent", "silent_s": round(silent_s)})
    if status.up and 0 < settings.picture_same_s <= status.same_s:
        detail: dict[str, str | float] = {"reason": "same_picture", "same_s": status.same_s}
        text = f"picture frozen: the same one for {status.same_s} s"
        return PICTURE_FROZEN, Finding("camera", "", text, detail=detail)
    # A camera that is still connecting at the start was not down all the time since the last run.
    down_s = (status.written_us - max(status.up_us, listening_us)) / 1e6
    if status.up or down_s < settings.camera_down_s:
        return None
    reason = status.error or status.state
    detail = {"reason": reason, "down_s": round(down_s)}
    if status.error == "frozen":
        return PICTURE_FROZEN, Finding("camera", "", "picture frozen: connected, and no frame comes", detail=detail)
    said = f": {status.error_text}" if status.error_text else f" ({reason})"
    return CAMERA_DOWN, Finding("camera", "", f"camera down{said}", detail=detail)
