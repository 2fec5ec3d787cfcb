"""The conservation law of one camera: captured = detected + dropped by cause + in flight.

The reader's side keeps the ledger: only it sees every frame begin, and the broker tells it how each one ended.
A frame is settled once: a second settlement of the same frame (a re-sent file frame, say) changes nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from wire.messages import DropCause, Outcome


@dataclass(frozen=True)
class LedgerSnapshot:
    """Frames of one camera since its reader's process began."""

    camera: str
    captured: int
    detected: int
    dropped: dict[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Whether the law holds at this instant."""
        return self.captured == self.detected + sum(self.dropped.values()) + self.in_flight


class CameraLedger:
    """Counts one camera's frames. Safe to use from the reader's and the link's thread."""

    def __init__(self, camera: str) -> None:
        self.camera = camera
        self._lock = threading.Lock()
        self._captured = 0
        self._detected = 0
        self._dropped: dict[str, int] = {}
        self._deciding = 0  # captured, and neither dropped nor sent yet
        self._sent: set[tuple[str, int]] = set()

    def captured(self, n: int = 1) -> None:
        """The source delivered n frames; each must then be dropped or sent."""
        with self._lock:
            self._captured += n
            self._deciding += n

    def dropped(self, cause: DropCause, n: int = 1) -> None:
        """n captured frames end here, without being sent."""
        with self._lock:
            self._deciding -= n
            self._dropped[cause] = self._dropped.get(cause, 0) + n

    def sent(self, session: str, seq: int) -> None:
        """One captured frame goes to the broker."""
        with self._lock:
            self._deciding -= 1
            self._sent.add((session, seq))

    def settled(self, session: str, seq: int, outcome: Outcome) -> bool:
        """One sent frame has ended. False when it had ended before, or was never sent."""
        with self._lock:
            key = (session, seq)
            if key not in self._sent:
                return False
            self._sent.remove(key)
            if outcome == "detected":
                self._detected += 1
            else:
                self._dropped[outcome] = self._dropped.get(outcome, 0) + 1
            return True

    @property
    def unsettled(self) -> int:
        """Frames sent whose end is not known yet."""
        with self._lock:
            return len(self._sent)

    def snapshot(self) -> LedgerSnapshot:
        """All counts at one instant."""
        with self._lock:
            in_flight = len(self._sent) + self._deciding
            return LedgerSnapshot(self.camera, self._captured, self._detected, dict(self._dropped), in_flight)
