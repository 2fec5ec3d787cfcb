"""The fps limit of one camera, in event time, so that a replay chooses the same frames."""

from __future__ import annotations


class FpsLimit:
    """Passes at most `fps` frames a second on average, and no burst larger than two frames."""

    def __init__(self, fps: float | None) -> None:
        self._period_us = 0.0 if fps is None else 1e6 / fps
        self._due_us: float | None = None

    def passes(self, event_us: int) -> bool:
        """Whether the frame of this event time is wanted. Where event time falls the beat starts anew."""
        if not self._period_us:
            return True
        if self._due_us is not None and event_us < self._due_us - 2 * self._period_us:  # never due so far ahead
            self._due_us = None
        if self._due_us is not None and event_us < self._due_us:
            return False
        # The next frame is due one period after this one *was due*, not after it came: otherwise 25 fps limited to 10
        # would give 8.3. After a gap of more than a period the beat starts anew.
        late_us = 0.0 if self._due_us is None else event_us - self._due_us
        self._due_us = event_us - (late_us if late_us < self._period_us else 0.0) + self._period_us
        return True
