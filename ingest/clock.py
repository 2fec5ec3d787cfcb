"""Event time: a source's timestamps (PTS) on the wall clock, strictly rising for each camera.

Arrival times come from the monotonic clock, laid on the wall clock when the stream is anchored. A step of the system's
clock (no battery behind it, and the network's time found late) is followed some seconds later; only where that goes
back by more than a minute can event time fall.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# A live camera's timestamps may leap ahead of real time by this much (a lost second of packets, a late start) before
# that is called a jump; a camera whose own clock is set leaps by more.
LIVE_LEAP_US = 1_000_000
# How far event time may lie behind arrival. HLS delivers up to ten seconds at once, so less would jump at each segment.
LIVE_STRAY_US = 15_000_000
# Part of a second that event time is pulled towards a later arrival in a second: ten times the error of a poor crystal
# (100 ppm), and yet too slow for a rule that measures seconds to notice.
SLEW = 0.001
# An earlier arrival says that all before were late, and is followed faster, at most so: an object that seems twice as
# fast for a moment is less wrong than a second squeezed into nothing.
SQUEEZE = 0.5
# A stream that begins with its past (a playlist's last segments, frames since the last keyframe) sends it as fast as
# the network carries it, in a second or two, and no more of it than three long segments (RFC 8216, 6.3.3). What goes on
# for longer is a recording, or a source whose timestamps run too fast.
CATCH_UP_US, PAST_US = 5_000_000, 30_000_000
# So much earlier than the first frame let expect may come what was not held back: a first keyframe takes its time.
EARLY_US = 500_000
# Timestamps that are rounded may say the same twice, or a little less.
SAME_US = 1000
# The system's clock has been set when it stays this far from where it was. Time servers slew what is less than half a
# second, and two processes' readings lie milliseconds apart.
WALL_STEP_US = 2_000_000
# So long must it stay there: while the clock is being found it may be set more than once.
WALL_STAYS_US = 10_000_000
# Set back by more, it is leapt after: the sink then takes all for a new beginning (sink.rules.course.LATE_US). By less,
# frames would be taken for late ones, so event time goes slower until the wall clock has caught up.
WALL_LEAP_BACK_US = 65_000_000
WALL_SLEW = 0.05
# Gaps in a recording are real (time-lapse, motion-triggered recording); an hour is a broken or wrapped timestamp.
FILE_LEAP_US = 3_600_000_000


class EventClock:
    """Maps one camera's timestamps to event time (microseconds since the epoch). One thread uses it.

    `wall_us` and `monotonic_ns` are injected for tests. `jumps` counts re-anchorings; `last_jump_us` is the size of the
    last one, by how much the source's time and ours parted, or the system's clock was set (`last_jump_was_ours`).
    `catching_up`: the newest frame was an old one, delivered because the stream had just begun.
    """

    def __init__(
        self,
        live: bool,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.jumps = 0
        self.last_jump_us = 0
        self.last_jump_was_ours = False
        self.lag_us = 0
        self.catching_up = False
        self._live = live
        self._wall_us = wall_us
        self._monotonic_ns = monotonic_ns
        self._epoch_us = 0.0  # wall minus monotonic at the last anchor
        self._offset_us: float | None = None  # event time minus the source's time
        self._pts_us = 0.0
        self._arrival_us = 0.0
        self._anchored_us = self._anchored_pts_us = 0.0  # arrival and time of the frame that anchored the stream
        self._moved_us = 0.0  # how far the anchor has been moved back since
        self._laid = False  # on the wall clock, since the stream began
        self._strayed_since_ns: int | None = None  # since when the wall clock lies elsewhere
        self._followed_ns = 0
        self._event_us = 0

    def restart(self) -> None:
        """The source begins anew (reconnected, or a file looped): the next frame anchors again; nothing is reported."""
        self._offset_us = None
        self._laid = False

    def stamp(self, pts_s: float | None, captured_ns: int, nominal_s: float = 0.04) -> int:
        """Event time of a frame captured at monotonic `captured_ns`; `nominal_s` is the source's usual frame period.

        A frame without a timestamp takes its arrival (live) or the previous frame's time plus nominal_s (file).
        """
        event_us = self._live_time(pts_s, captured_ns) if self._live else self._file_time(pts_s, nominal_s * 1e6)
        self._event_us = max(self._event_us + 1, round(event_us))
        return self._event_us

    def _live_time(self, pts_s: float | None, captured_ns: int) -> float:
        self.catching_up = False
        if self._laid:
            self._follow_wall(captured_ns)
        else:
            self._lay_on_wall(captured_ns)
        arrival_us = self._epoch_us + captured_ns / 1000
        if pts_s is None:
            return arrival_us
        pts_us = pts_s * 1e6
        if self._offset_us is None:
            self._anchor(pts_us, arrival_us)
        assert self._offset_us is not None  # anchored now
        step_us, passed_us = pts_us - self._pts_us, arrival_us - self._arrival_us
        stray_us = arrival_us - self._offset_us - pts_us
        if step_us < 0 or step_us - max(passed_us, 0) > LIVE_LEAP_US or abs(stray_us) > LIVE_STRAY_US:
            self._jump(round(stray_us))
            self._lay_on_wall(captured_ns)
            arrival_us = self._epoch_us + captured_ns / 1000
            self._anchor(pts_us, arrival_us)
        elif stray_us < 0:
            self._arrived_early(pts_us, arrival_us, step_us, stray_us)
        else:
            self._offset_us += min(SLEW * step_us, stray_us)
        self._pts_us, self._arrival_us = pts_us, arrival_us
        event_us = pts_us + self._offset_us
        # Before it was found out that the past is being sent, some of it was told: nothing is squeezed in behind that.
        self.catching_up |= self._may_be_past(pts_us) and event_us < self._event_us - SAME_US
        self.lag_us = round(arrival_us - event_us)
        return event_us

    def _arrived_early(self, pts_us: float, arrival_us: float, step_us: float, stray_us: float) -> None:
        """No frame is taken after it arrived: those before it were late, or it is one of the stream's past."""
        assert self._offset_us is not None
        begun = arrival_us - self._anchored_us < CATCH_UP_US and self._may_be_past(pts_us)
        self.catching_up = begun and self._moved_us - stray_us > EARLY_US and stray_us < -SQUEEZE * step_us
        at_once = self.catching_up or stray_us < -EARLY_US
        move_us = stray_us if at_once else max(stray_us, -SQUEEZE * step_us)
        self._offset_us += move_us
        self._moved_us -= move_us

    def _may_be_past(self, pts_us: float) -> bool:
        return pts_us - self._anchored_pts_us < PAST_US

    def _lay_on_wall(self, captured_ns: int) -> None:
        # A wall clock that was set back is not followed at once: event time goes on from where it was, at its pace.
        self._epoch_us = max(self._wall_epoch_us(), self._event_us - captured_ns / 1000)
        self._laid = True

    def _wall_epoch_us(self) -> float:
        return self._wall_us() - self._monotonic_ns() / 1000

    def _follow_wall(self, captured_ns: int) -> None:
        """Go to where the wall clock is, once it has stayed there."""
        passed_us = max(0, captured_ns - self._followed_ns) / 1000
        self._followed_ns = captured_ns
        step_us = self._wall_epoch_us() - self._epoch_us
        if abs(step_us) < WALL_STEP_US:
            self._strayed_since_ns = None
        elif self._strayed_since_ns is None:
            self._strayed_since_ns = captured_ns
        elif captured_ns - self._strayed_since_ns >= WALL_STAYS_US * 1000:
            if -WALL_LEAP_BACK_US < step_us < 0:
                step_us = max(step_us, -WALL_SLEW * passed_us)
            else:
                self._strayed_since_ns = None
                self._jump(round(step_us), ours=True)
                if step_us < 0:
                    self._event_us = 0  # the one time that event time may fall
            self._move(step_us)

    def _move(self, step_us: float) -> None:
        self._epoch_us += step_us
        self._arrival_us += step_us
        self._anchored_us += step_us
        if self._offset_us is not None:
            self._offset_us += step_us

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
        self._pts_us, self._arrival_us = self._anchored_pts_us, self._anchored_us = pts_us, event_us
        self._moved_us = 0.0

    def _jump(self, size_us: int, *, ours: bool = False) -> None:
        self.jumps += 1
        self.last_jump_us, self.last_jump_was_ours = size_us, ours
