"""How one camera is doing: written by its thread, read by metrics and health."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ingest.errors import ErrorKind, SourceError
from ingest.wakefulness import Wakefulness, WakefulnessSnapshot

State = Literal[
    "starting",  # its thread has not begun
    "connecting",  # opening the source
    "waiting",  # a file, open; no detector has said yet what it wants
    "streaming",  # frames arrive
    "frozen",  # connected, but nothing came; about to connect anew
    "backing_off",  # lost or never there; waits before the next attempt
    "draining",  # a file is read to its end; its last frames are being detected
    "ended",  # a file, all of it settled
    "failed",  # a file that cannot be read (on)
    "stopped",  # told to stop
]
FINAL: frozenset[State] = frozenset({"ended", "failed", "stopped"})

RATE_WINDOW_S = 5  # long enough to be steady at 1 fps, short enough to show a stall


@dataclass(frozen=True)
class CameraSnapshot:
    """One camera at one instant. Nothing in it is secret."""

    camera: str
    source: str
    live: bool
    state: State
    error: ErrorKind | None  # the last one, until frames arrive again
    error_text: str
    errors: dict[str, int]  # how often each kind happened
    reconnects: int  # attempts after the first
    abandoned: int  # readers given up by the watchdog
    fps: float  # frames the source delivered, over the last whole seconds
    concealed: int  # pictures that the decoder had to guess parts of
    clock_jumps: int
    lag_ms: float  # arrival after event time: how far the stream runs behind
    same_s: float  # for how long its picture has been the same
    decoding: WakefulnessSnapshot


class Rate:
    """Events a second over the last RATE_WINDOW_S whole seconds. Written by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}
        self._first: int | None = None

    def add(self, count: int) -> None:
        """`count` events happened now."""
        second = int(self._clock())
        with self._lock:
            if self._first is None:
                self._first = second
            if second not in self._counts:
                self._counts = {s: n for s, n in self._counts.items() if s >= second - RATE_WINDOW_S}
            self._counts[second] = self._counts.get(second, 0) + count

    def per_s(self) -> float:
        """Mean rate; the second that is still running does not count."""
        second = int(self._clock())
        with self._lock:
            if self._first is None:
                return 0.0
            total = sum(n for s, n in self._counts.items() if second - RATE_WINDOW_S <= s < second)
            # The first second was only partly there.
            window = min(RATE_WINDOW_S, second - self._first)
        return total / window if window > 0 else 0.0


class CameraStatus:
    """What outlives a camera's readers: its state, its counters and its frame numbers."""

    def __init__(self, camera: str, source: str, live: bool) -> None:
        self.camera = camera
        self.source = source
        self.live = live
        self.state: State = "starting"
        self.reconnects = 0
        self.concealed = 0
        self.clock_jumps = 0
        self.lag_us = 0
        self.same_s = 0.0
        self.rate = Rate()
        self.wakefulness = Wakefulness(camera)
        self._lock = threading.Lock()
        self._error: SourceError | None = None
        self._errors: dict[str, int] = {}
        self._abandoned = 0
        self._seq = 0

    def next_seq(self) -> int:
        """The next frame number; never given twice."""
        with self._lock:
            self._seq += 1
            return self._seq

    def failed(self, error: SourceError) -> None:
        """An attempt ended so."""
        with self._lock:
            self._error = error
            self._errors[error.kind] = self._errors.get(error.kind, 0) + 1
            self._abandoned += error.kind == "hung"

    def streaming(self) -> None:
        """Frames arrive (again)."""
        with self._lock:
            self._error = None
        self.state = "streaming"

    @property
    def abandoned(self) -> int:
        """Readers that the watchdog gave up."""
        return self._abandoned

    def snapshot(self) -> CameraSnapshot:
        """All of it, at this instant."""
        with self._lock:
            error, errors = self._error, dict(self._errors)
        return CameraSnapshot(
            camera=self.camera,
            source=self.source,
            live=self.live,
            state=self.state,
            error=error.kind if error else None,
            error_text=str(error) if error else "",
            errors=errors,
            reconnects=self.reconnects,
            abandoned=self._abandoned,
            fps=self.rate.per_s(),
            concealed=self.concealed,
            clock_jumps=self.clock_jumps,
            lag_ms=self.lag_us / 1000,
            same_s=self.same_s,
            decoding=self.wakefulness.snapshot(),
        )
