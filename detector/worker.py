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

LOOK_UP_S = 0.2  # how often an idle worker looks whether it is to stop


class Publisher(Protocol):
    """Where records go; it calls the worker's `published` or `shed` for each."""

    def put(self, record: DetectionRecord) -> None: ...


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

    def run(self, publisher: Publisher, stop: threading.Event) -> None:
        """Work until `stop`; a frame begun is finished."""
        while not stop.is_set():
            if got := self._source.next(LOOK_UP_S):
                self._infer(*got, publisher)

    def _infer(self, work: Work, pixels: memoryview, publisher: Publisher) -> None:
        header = work.frame
        if not self._detector.is_compiled(header.height, header.width):
            self._source.be_patient(self._compile_s)
        start_ns = time.monotonic_ns()
        if not header.lossless and self._max_age_ns is not None and start_ns - header.captured_ns > self._max_age_ns:
            self.stats.stale += 1
            self._source.done(work, "stale")
            return
        try:
            detections = self._detector.detect(header, pixels)
        except DetectorError as error:
            self.stats.failed += 1
            outcome: Outcome = "bad_frame" if isinstance(error, BadFrame) else "inference_error"
            log.warning("frame not detected", camera=header.camera, seq=header.seq, cause=outcome, error=str(error))
            self._source.done(work, outcome)
            return
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
            self._source.done(work, "detected")
        publisher.put(record)
        self.stats.detected += 1
        self.stats.last_inference_ms = (end_ns - start_ns) / 1e6
        self._observe("queue", (start_ns - header.captured_ns) / 1e9)
        self._observe("inference", (end_ns - start_ns) / 1e9)

    def published(self, record: DetectionRecord) -> None:
        """Redis has this record. Called by the publisher's thread."""
        self._observe("publish", (time.monotonic_ns() - record.inference_end_ns) / 1e9)
        self._end(record, "detected")

    def shed(self, record: DetectionRecord) -> None:
        """The outbox was full while Redis was away, and gave this record up."""
        self._end(record, "unpublished")

    def _end(self, record: DetectionRecord, outcome: Outcome) -> None:
        with self._lock:
            work = self._unpublished.pop((record.camera, record.session, record.seq), None)
        if work:
            self._source.done(work, outcome)
