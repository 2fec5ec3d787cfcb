"""One worker's loop: frames in, detections out, each frame ended exactly once.

A live frame has ended when it is inferred. A file's frame has ended when Redis has its detections: until then it counts
as this worker's, and is inferred again by another should this one die; publishing once is the stream's care.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from detector.detector import Detector
from detector.errors import BadFrame, DetectorError
from wire.consumer import WorkSource
from wire.messages import DetectionRecord, Outcome, Work

log = structlog.get_logger()

# While frames are waiting, a record may wait this long for others to be published with: waking the publisher, Redis and
# the sink costs more CPU than the record does. A worker that has caught up publishes at once.
LINGER_S = 0.015
LOOK_UP_S = 0.2  # how often an idle worker looks whether it is to stop


class Publisher(Protocol):
    """Where records go; it tells each to the worker's `published` or `shed`."""

    def put(self, record: DetectionRecord, *, hurry: bool) -> None:
        """Take a record; without `hurry` it may wait for one that has it."""

    def hurry(self) -> None:
        """Publish what waits."""


@dataclass
class WorkerStats:
    """Frames by outcome, and the time of the last one."""

    detected: int = 0
    failed: int = 0
    stale: int = 0
    last_inference_ms: float = 0.0


class Worker:
    """Infers what a WorkSource brings and hands the records to a publisher."""

    def __init__(
        self,
        detector: Detector,
        source: WorkSource,
        *,
        max_age_ms: int | None,
        compile_s: float,
        observe: Callable[[Literal["queue", "inference", "publish"], float], None],
    ) -> None:
        """`max_age_ms` None: the clocks of another host say nothing of age. `compile_s`: the most a new shape may take.

        `observe(stage, seconds)` takes latencies.
        """
        self.stats = WorkerStats()
        self._detector = detector
        self._source = source
        self._max_age_ns = None if max_age_ms is None else max_age_ms * 1_000_000
        self._compile_s = compile_s
        self._observe = observe
        self._unpublished: dict[tuple[str, str, int], Work] = {}  # file frames whose detections Redis does not have yet
        self._lock = threading.Lock()
        self._lingering_since_s: float | None = None

    def run(self, publisher: Publisher, stop: threading.Event) -> None:
        """Work until `stop`; a frame begun is finished."""
        while not stop.is_set():
            got = self._source.next(LOOK_UP_S)
            if got and not self._detector.is_compiled(got[0].frame.height, got[0].frame.width):
                publisher.hurry()
                self._source.be_patient(self._compile_s)
            record = self._infer(*got) if got else None
            self._publish(record, publisher)

    def _publish(self, record: DetectionRecord | None, publisher: Publisher) -> None:
        """Hand a record over; while the next frame is at hand already, a few records go together."""
        now_s = time.monotonic()
        if record is None:
            if self._lingering_since_s is not None:
                publisher.hurry()
                self._lingering_since_s = None
            return
        since_s = now_s if self._lingering_since_s is None else self._lingering_since_s
        next_s = now_s + self.stats.last_inference_ms / 1000
        hurry = next_s - since_s > LINGER_S or not self._source.has_more
        publisher.put(record, hurry=hurry)
        self._lingering_since_s = None if hurry else since_s

    def _infer(self, work: Work, pixels: memoryview) -> DetectionRecord | None:
        header = work.frame
        start_ns = time.monotonic_ns()
        if not header.lossless and self._max_age_ns is not None and start_ns - header.captured_ns > self._max_age_ns:
            self.stats.stale += 1
            self._source.done(work, outcome="stale")
            return None
        try:
            detections = self._detector.detect(header, pixels)
        except DetectorError as error:
            self.stats.failed += 1
            outcome: Outcome = "bad_frame" if isinstance(error, BadFrame) else "inference_error"
            log.warning("frame not detected", camera=header.camera, seq=header.seq, cause=outcome, error=str(error))
            self._source.done(work, outcome=outcome)
            return None
        end_ns = time.monotonic_ns()
        record = DetectionRecord(
            camera=header.camera,
            session=header.session,
            seq=header.seq,
            order=work.order,
            broker=work.broker,
            worker=self._source.name,
            model=self._detector.model_name,
            event_us=header.event_us,
            captured_ns=header.captured_ns,
            dispatched_ns=work.dispatched_ns,
            inference_start_ns=start_ns,
            inference_end_ns=end_ns,
            source_height=header.source_height,
            source_width=header.source_width,
            detections=detections,
        )
        if header.lossless:
            with self._lock:
                self._unpublished[(header.camera, header.session, header.seq)] = work
            self._source.inferred(work)
        else:
            self._source.done(work, outcome="detected")
        self.stats.detected += 1
        self.stats.last_inference_ms = (end_ns - start_ns) / 1e6
        self._observe("queue", (start_ns - header.captured_ns) / 1e9)
        self._observe("inference", (end_ns - start_ns) / 1e9)
        return record

    def published(self, records: list[DetectionRecord]) -> None:
        """Redis has these records. Called by the publisher's thread."""
        now_ns = time.monotonic_ns()
        for record in records:
            self._observe("publish", (now_ns - record.inference_end_ns) / 1e9)
        self._end(records, "detected")

    def shed(self, records: list[DetectionRecord]) -> None:
        """The outbox was full while Redis was away, and gave these records up."""
        self._end(records, "unpublished")

    def _end(self, records: list[DetectionRecord], outcome: Outcome) -> None:
        keys = [(record.camera, record.session, record.seq) for record in records]
        with self._lock:
            works = [work for key in keys if (work := self._unpublished.pop(key, None))]
        if works:
            self._source.done(*works, outcome=outcome)
