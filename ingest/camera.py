"""One camera's thread: open, read, prepare, send; come back after every trouble, and let none of it out.

A live camera is tried again for ever. A file is read once: it ends when its last frame is settled, and a file that
cannot be read fails, because reading it again would detect its first frames twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import structlog

from ingest.backoff import Backoff
from ingest.errors import SourceError
from ingest.frames import Delivery, Picture, Reader, Skipped
from ingest.prepare import Preparation
from ingest.reader import VideoReader, open_reader
from ingest.settings import CameraSettings
from ingest.sources import Source
from ingest.status import FINAL
from ingest.wakefulness import Wakefulness

log = structlog.get_logger()

OpenReader = Callable[[CameraSettings, int, Callable[[], bool], Wakefulness], tuple[Source, Reader]]
T = TypeVar("T")

# A camera that stays down says so again after this long, and not at each attempt.
_REPEAT_LOG_S = 60.0
_SPEC_POLL_S = 0.05
_DRAIN_POLL_S = 0.2


class Camera:
    """Runs one camera until it ends, is stopped, or is abandoned by the watchdog."""

    def __init__(
        self,
        settings: CameraSettings,
        preparation: Preparation,
        stop: threading.Event,
        *,
        max_pixels: int,
        open_reader: OpenReader = open_reader,
    ) -> None:
        self._settings = settings
        self._preparation = preparation
        self._port = preparation.port
        self._status = preparation.status
        self._stop = stop
        self._max_pixels = max_pixels
        self._open_reader = open_reader
        self._abandoned = False
        self._backoff = Backoff(settings.reconnect)
        self._log = log.bind(camera=self._status.camera)
        self._trouble: str | None = None  # the kind of error that was logged last
        self._trouble_s = 0.0  # since when it is down
        self._logged_s = 0.0
        self._damage_told = False
        self._in_source_since_s: float | None = None

    @property
    def in_source_s(self) -> float:
        """How long the thread has been inside one call of the source (seconds); 0 when it is elsewhere."""
        since_s = self._in_source_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def abandon(self) -> None:
        """The watchdog gave this thread up: should it wake, it must count and send nothing more."""
        self._abandoned = True

    def run(self) -> None:
        """The thread's body. Raises nothing."""
        while not self._over:
            try:
                self._read()
            except SourceError as error:
                trouble = error
            # Whatever one camera meets must not reach the others; it is logged in full, counted and tried again.
            except Exception as error:
                if not self._over:
                    self._log.exception("unexpected error")
                trouble = SourceError("internal", type(error).__name__)
            else:
                break
            if self._over or not self._try_again(trouble):
                break
        if not self._abandoned and self._stop.is_set() and self._status.state not in FINAL:
            self._status.state = "stopped"

    @property
    def _over(self) -> bool:
        return self._abandoned or self._stop.is_set()

    def _read(self) -> None:
        """One attempt. Returns when a file is done with, or when told to stop."""
        self._status.state = "connecting"
        while not self._over:
            source, reader = self._in_source(self._open)
            try:
                if not self._over:  # else another thread may read this camera by now
                    self._preparation.clock.restart()
                    self._play(source, reader)
            finally:
                self._in_source(reader.close)
            if source.live or not self._settings.loop:
                break
        self._drain()

    def _open(self) -> tuple[Source, Reader]:
        source, reader = self._open_reader(
            self._settings, self._max_pixels, lambda: self._port.spec is not None, self._status.wakefulness
        )
        if self._preparation.ring is not None and isinstance(reader, VideoReader) and not self._over:
            reader.record(self._preparation.ring)
        return source, reader

    def _play(self, source: Source, reader: Reader) -> None:
        if not source.live:
            self._wait_for_model()
        deliveries = iter(reader.deliveries())
        concealed_before = self._status.concealed
        pictures = frames = 0
        pace = _Pace(self._settings.pace == "realtime" and not source.live, self._stop)
        while (delivery := self._next(deliveries)) is not None:
            if self._over:
                return
            if not frames:
                self._arrived()
            if isinstance(delivery, Skipped):
                frames += delivery.count
                self._status.rate.add(delivery.count)
                self._port.ledger.captured(delivery.count)
                self._port.ledger.dropped(delivery.cause, delivery.count)
                continue
            frames += 1
            pictures += 1
            self._status.rate.add(1)
            self._status.concealed = concealed_before + reader.concealed
            event_us = self._preparation.stamp(delivery, reader.nominal_s)
            self._preparation.handle(pace.hold(delivery, event_us), event_us)
        if not pictures and not self._over:
            raise SourceError("corrupt", f"{source.shown}: none of its {frames} frames could be decoded")
        if reader.defect is not None:
            self._status.failed(reader.defect)
            if not self._damage_told:  # once, and not at each round of a loop
                self._log.warning("source is damaged", error=reader.defect.what)
            self._damage_told = True

    def _next(self, deliveries: Iterator[Delivery]) -> Delivery | None:
        return self._in_source(lambda: next(deliveries, None))

    def _in_source(self, call: Callable[[], T]) -> T:
        """Do something that storage, network or driver may block; the watchdog sees for how long."""
        self._in_source_since_s = time.monotonic()
        try:
            return call()
        finally:
            self._in_source_since_s = None

    def _arrived(self) -> None:
        self._backoff.streaming()
        self._status.streaming()
        if self._trouble is not None:
            self._log.info("camera is back", down_s=round(time.monotonic() - self._trouble_s, 1))
            self._trouble = None

    def _wait_for_model(self) -> None:
        self._status.state = "waiting"
        while self._port.spec is None and not self._over:
            self._stop.wait(_SPEC_POLL_S)

    def _drain(self) -> None:
        """A file ended: its state is `ended` only when every frame of it is settled."""
        if self._over:
            return
        self._status.state = "draining"
        while not self._port.drain(_DRAIN_POLL_S):
            if self._over:
                return
        self._status.state = "ended"
        self._log.info("source ended")

    def _try_again(self, error: SourceError) -> bool:
        """Wait for the next attempt; False when there will be none."""
        self._status.failed(error)
        if not self._status.live:
            self._status.state = "failed"
            self._log.error("source failed", kind=error.kind, error=error.what, mend=error.mend)
            return False
        self._status.state = "frozen" if error.kind == "frozen" else "backing_off"
        wait_s = self._backoff.next_wait_s(error.stubborn)
        now_s = time.monotonic()
        if self._trouble is None:
            self._trouble_s = self._logged_s = now_s
        if error.kind != self._trouble or now_s - self._logged_s >= _REPEAT_LOG_S:
            self._trouble, self._logged_s = error.kind, now_s
            self._log.warning(
                "camera lost", kind=error.kind, error=error.what, mend=error.mend, next_attempt_s=round(wait_s, 2)
            )
        self._stop.wait(wait_s)
        self._status.reconnects += 1
        return not self._over


class _Pace:
    """Holds a file's frames back until their time has come."""

    def __init__(self, wanted: bool, stop: threading.Event) -> None:
        self._wanted = wanted
        self._stop = stop
        self._anchor_s: float | None = None  # monotonic time minus event time

    def hold(self, picture: Picture, event_us: int) -> Picture:
        """The picture, when its time has come; captured then, as if a camera had delivered it."""
        if not self._wanted:
            return picture
        now_s, event_s = time.monotonic(), event_us / 1e6
        if self._anchor_s is None:
            self._anchor_s = now_s - event_s
        self._stop.wait(max(0.0, self._anchor_s + event_s - now_s))
        return replace(picture, captured_ns=time.monotonic_ns())
