"""How many incidents a camera may open, and the one alert that tells of all it may not."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from sink.messages import Incident, over, told
from sink.tracks import Finding
from wire.alerts import Alert, alert_id
from wire.messages import DetectionRecord

WINDOW_US = 3_600_000_000
SUPPRESSED = "system.suppressed"


class BudgetState(Struct, array_like=True):
    """The hour that runs, in the frames' time; it began with an incident."""

    began_us: int = -1
    opened: int = 0
    suppressed: int = 0
    summary: Incident | None = None  # opened with the first incident that was kept back


class Budget:
    """Counts a camera's incidents by the hour."""

    def __init__(self, camera: str, max_per_hour: int, state: BudgetState) -> None:
        self._camera = camera
        self._max = max_per_hour
        self.state = state

    def spend(self, event_us: int) -> bool:
        """Whether one more may be opened; then it is counted."""
        if self.state.began_us < 0:
            self.state.began_us = event_us
        if self.state.opened >= self._max:
            return False
        self.state.opened += 1
        return True

    def suppress(self, event_us: int, record: DetectionRecord | None) -> list[Alert]:
        """One is kept back: the first of the hour is told at once, the sum when the hour is over."""
        state = self.state
        state.suppressed += 1
        if state.summary is not None:
            state.summary.seen_us = event_us
            return []
        text = f"more than {self._max} incidents within an hour: others are kept back"
        session, seq = (record.session, record.seq) if record else ("", event_us)
        id_ = alert_id(self._camera, SUPPRESSED, "", session, seq)
        state.summary = Incident(SUPPRESSED, "", "", text, event_us, event_us, id_, event_us, event_us)
        return [replace(told(self._camera, state.summary, Finding("", "", text), event_us, record), suppressed=1)]

    def roll(self, event_us: int) -> list[Alert]:
        """Begin the next hour when this one is over; returns its summary where it kept incidents back."""
        if self.state.began_us < 0 or event_us - self.state.began_us < WINDOW_US:
            return []
        return self.end()

    def end(self) -> list[Alert]:
        """Forget the hour; returns its summary where it kept incidents back."""
        ended, self.state = self.state, BudgetState()
        if ended.summary is None:
            return []
        text = f"{ended.suppressed} incidents were kept back at {self._camera}: more than {self._max} within an hour"
        return [replace(over(self._camera, ended.summary), suppressed=ended.suppressed, text=text)]
