"""Event time: a source's timestamps (PTS) on the wall clock, strictly rising for each camera.

Arrival times come from the monotonic clock, laid on the wall clock when the stream is anchored, so a step of the
system's clock in mid-stream moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# A live camera's timestamps may leap ahead of real time by this much (a lost second of packets, a late start) before
# that is called a jump; a camera whose own clock is set leaps by more.
LIVE_LEAP_US = 1_000_000
# How far event time may lie from arrival. HLS delivers up to ten seconds at once, so less would jump at each segment.
LIVE_STRAY_US = 15_000_000
# Part of a second that event time is pulled towards arrival in a second: fifty times the error of a poor crystal
# (100 ppm), and yet too slow for a rule that measures seconds to notice.
SLEW = 0.005
# Gaps in a recording are real (time-lapse, motion-triggered recording); an hour is a broken or wrapped timestamp.
FILE_LEAP_US = 3_600_000_000


class EventClock:
    """Maps one camera's timestamps to event time (microseconds since the epoch). One thread uses it.

    `wall_us` and `monotonic_ns` are injected for tests. `jumps` counts re-anchorings; `last_jump_us` is the size of the
    last one: by how much the source's time and ours parted.
    """

    def __init__(
        self,
        live: bool,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.jumps = 0
        self.last_jump_us = 0
        self.lag_us = 0
        self._live = live
        self._wall_us = wall_us
        self._monotonic_ns = monotonic_ns
        self._epoch_us = 0.0  # wall minus monotonic at the last anchor
        self._offset_us: float | None = None  # event time minus the source's time
        self._pts_us = 0.0
        self._arrival_us = 0.0
        self._event_us = 0

    def restart(self) -> None:
        """The source begins anew (reconnected, or a file looped): the next frame anchors again; nothing is reported."""
        self._offset_us = None

    def stamp(self, pts_s: float | None, captured_ns: int, nominal_s: float = 0.04) -> int:
        """Event time of a frame captured at monotonic `captured_ns`; `nominal_s` is the source's usual frame period.

        A frame without a timestamp takes its arrival (live) or the previous frame's time plus nominal_s (file).
        """
        event_us = self._live_time(pts_s, captured_ns) if self._live else self._file_time(pts_s, nominal_s * 1e6)
        self._event_us = max(self._event_us + 1, round(event_us))
        return self._event_us

    def _live_time(self, pts_s: float | None, captured_ns: int) -> float:
        if self._offset_us is None:
            self._lay_on_wall(captured_ns)
        arrival_us = self._epoch_us + captured_ns / 1000
        if pts_s is None:
            return arrival_us
        pts_us = pts_s * 1e6
        if self._offset_us is None:
            self._anchor(pts_us, arrival_us)
        step_us, passed_us = pts_us - self._pts_us, arrival_us - self._arrival_us
        stray_us = arrival_us - (self._offset_us or 0.0) - pts_us
        leapt = step_us < 0 or step_us - max(passed_us, 0) > LIVE_LEAP_US or abs(stray_us) > LIVE_STRAY_US
        if leapt:
            self._jump(round(stray_us))
            self._lay_on_wall(captured_ns)
            arrival_us = self._epoch_us + captured_ns / 1000
            self._anchor(pts_us, arrival_us)
        else:
            pull_us = min(SLEW * step_us, abs(stray_us))
            assert self._offset_us is not None  # anchored above
            self._offset_us += pull_us if stray_us > 0 else -pull_us
        self._pts_us, self._arrival_us = pts_us, arrival_us
        event_us = pts_us + (self._offset_us or 0.0)
        self.lag_us = round(arrival_us - event_us)
        return event_us

    def _lay_on_wall(self, captured_ns: int) -> None:
        wall_epoch_us = self._wall_us() - self._monotonic_ns() / 1000
        # A wall clock that was set back is not followed: event time goes on from where it was, at its usual pace.
        self._epoch_us = max(wall_epoch_us, self._event_us - captured_ns / 1000)

    def _file_time(self, pts_s: float | None, nominal_us: float) -> float:
        next_us = self._event_us + nominal_us if self._event_us else float(self._wall_us())
        if pts_s is None:
            return next_us
        pts_us = pts_s * 1e6
        if self._offset_us is None:
            self._anchor(pts_us, next_us)
        elif not 0 <= pts_us - self._pts_us <= FILE_LEAP_US:
            self._jump(round(pts_us - self._pts_us))
            self._anchor(pts_us, next_us)
        self._pts_us = pts_us
        return pts_us + (self._offset_us or 0.0)

    def _anchor(self, pts_us: float, event_us: float) -> None:
        self._offset_us = event_us - pts_us
        self._pts_us, self._arrival_us = pts_us, event_us

    def _jump(self, size_us: int) -> None:
        self.jumps += 1
        self.last_jump_us = size_us
