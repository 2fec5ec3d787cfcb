"""Where a frame stands in the course of event time: next in turn, late, or the beginning of another run."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from wire.messages import DetectionRecord

# A frame of the same run that is earlier than the newest by more is none that was overtaken (the longest wait for one
# is sink.reorder_timeout_s, 60 s at most): its clock has been set back.
LATE_US = 60_000_000


class Order(Enum):
    """How a frame follows those before it."""

    NEXT = "next"
    LATE = "late"  # overtaken by a newer one
    NEW_RUN = "new run"  # the camera's reader has begun anew, later than it ended
    BACK = "back"  # time has gone back: the same material again, or a clock that was mended


class Course(Struct, array_like=True):
    """The newest frame of a camera that a rule has seen."""

    session: str = ""
    session_before: str = ""
    newest_us: int = -1
    gap_us: int = 0  # from the frame before to the newest; 0 for the first of a run

    def take(self, record: DetectionRecord) -> Order:
        """Note a frame and say how it follows."""
        event_us = record.event_us
        if record.session == self.session:
            if event_us >= self.newest_us:
                self.gap_us = event_us - self.newest_us
                self.newest_us = event_us
                return Order.NEXT
            if event_us >= self.newest_us - LATE_US:
                return Order.LATE
        elif record.session == self.session_before and self.newest_us - LATE_US <= event_us < self.newest_us:
            return Order.LATE  # a straggler of the run before
        went_back = event_us < self.newest_us
        if record.session != self.session:
            self.session_before, self.session = self.session, record.session
        self.gap_us = 0 if went_back or self.newest_us < 0 else event_us - self.newest_us
        self.newest_us = event_us
        return Order.BACK if went_back else Order.NEW_RUN
