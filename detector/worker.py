"""One worker's loop: frames in, detections out, each frame ended exactly once.

A live frame has ended when it is inferred. A file's frame has ended when Redis has its detections: until then it counts
as this worker's, and is inferred again by another should this one die; publishing once is the stream's care.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import msgspec
import structlog

from detector.detector import Detector
from detector.errors import BadFrame, DetectorError
from detector.refit import is_fitted, refit
from wire.consumer import Item, WorkSource
from wire.deployment import Tally
from wire.messages import Detection, DetectionRecord, FrameHeader, InputSpec, Outcome, Work

log = structlog.get_logger()

# While whole batches are waiting, a record may wait this long for others to be published with: waking the publisher,
# Redis and the sink costs more CPU than the record does. A worker that keeps up publishes at once, and so does one that
# infers live frames one by one: a second one waiting does not mean that it is behind.
LINGER_S = 0.015
LOOK_UP_S = 0.2  # how often an idle worker looks whether it is to stop
SOURCES_KEPT = 16  # sizes of sources that a change of model is prepared for; more sizes than a site has


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
        max_age_ms: int,
        compile_s: float,
        observe: Callable[[Literal["queue", "inference", "publish"], float], None],
    ) -> None:
        """`compile_s`: the most a new shape may take. `observe(stage, seconds)` takes latencies."""
        self.stats = WorkerStats()
        self.tally = Tally()
        self.sources: dict[tuple[int, int], FrameHeader] = {}  # the last frame of each size of source picture
        self._detector = detector
        self._next: Detector | None = None
        self._fallback: Detector | None = None
        self._announce: int | None = None
        self._source = source
        self._max_age_ns = max_age_ms * 1_000_000
        self._compile_s = compile_s
        self._observe = observe
        self._unpublished: dict[tuple[str, str, int], Work] = {}  # file frames whose detections Redis does not have yet
        self._lock = threading.Lock()
        self._lingering_since_s: float | None = None

    def run(self, publisher: Publisher, stop: threading.Event) -> None:
        """Work until `stop`; a frame begun is finished."""
        while not stop.is_set():
            self._take_up()
            batch = self._source.next_batch(LOOK_UP_S, self._detector.batch)
            fresh = [fitted for item in batch if not self._is_stale(item[0]) and (fitted := self._fitted(item))]
            records: list[DetectionRecord] = []
            for shape, items in groupby(fresh, key=lambda item: (item[0].frame.height, item[0].frame.width)):
                if not self._detector.is_compiled(*shape):
                    publisher.hurry()
                    self._source.be_patient(self._compile_s)
                records += self._infer(list(items))
            patient = self._detector.batch > 1 or all(work.frame.lossless for work, _ in fresh)
            self._publish(records, publisher, patient=patient)

    @property
    def detector(self) -> Detector:
        """The detector in use. May be read by any thread."""
        return self._detector

    @property
    def asked_for(self) -> InputSpec:
        """The pictures that ingest is asked for."""
        return self._source.spec

    @property
    def capacity(self) -> int:
        """How many frames it holds at most."""
        return self._source.capacity

    def change(self, detector: Detector) -> None:
        """Use another detector from the next frame on, and count anew. May be called by any thread.

        Until `settle` the one before takes the frames that this one fails on, so that a bad model costs none. Frames
        made for another input are fitted to it here; ingest goes on sending what it was asked for before.
        """
        self._next = detector

    def settle(self) -> None:
        """The model in use has proved itself: the one before is let go. May be called by any thread."""
        self._fallback = None

    def announce(self, capacity: int) -> None:
        """Ask ingest for what the detector in use wants, and hold so many frames. May be called by any thread."""
        self._announce = capacity

    def recount(self) -> Tally:
        """Count anew from now on; returns the counts so far."""
        before, self.tally = self.tally, Tally()
        return before

    def _take_up(self) -> None:
        """Between two frames: the changes that other threads want."""
        detector, self._next = self._next, None
        if detector is not None:
            self._fallback, self._detector = self._detector, detector
            self.recount()
            log.info("detecting with another model", model=detector.model_name)
        capacity, self._announce = self._announce, None
        if capacity is not None:
            self._source.announce(self._detector.spec, capacity)

    def _fitted(self, item: Item) -> Item | None:
        """The frame as the detector wants it; None for one that cannot be read, which has been ended."""
        work, pixels = item
        header = work.frame
        size = header.source_height, header.source_width
        if size not in self.sources and len(self.sources) >= SOURCES_KEPT:
            self.sources = {}
        self.sources[size] = header
        if is_fitted(header, self._detector.spec):
            return item
        try:
            header, boxed = refit(header, pixels, self._detector.spec)
        except DetectorError as error:
            self._failed(work, error)
            return None
        return msgspec.structs.replace(work, frame=header), boxed.reshape(-1).data

    def _is_stale(self, work: Work) -> bool:
        header = work.frame
        age_ns = time.monotonic_ns() - header.captured_ns
        if header.lossless or age_ns <= self._max_age_ns:
            return False
        self.stats.stale += 1
        self._source.done(work, outcome="stale")
        return True

    def _infer(self, batch: list[Item]) -> list[DetectionRecord]:
        """Infer a batch and end its live frames; frames that fail are ended here and are not in the result."""
        start_ns = time.monotonic_ns()
        model = self._detector
        try:
            found = model.detect_batch([(work.frame, pixels) for work, pixels in batch])
        except DetectorError as error:
            if len(batch) > 1:  # which of them it was is found out by taking each alone
                return [record for item in batch for record in self._infer([item])]
            if not isinstance(error, BadFrame):  # which is not the model's fault
                self.tally.failed += 1
            fallback = self._fallback
            again = self._infer_before(fallback, batch[0]) if fallback else None
            if fallback is None or again is None:
                self._failed(batch[0][0], error)
                return []
            model, found = fallback, again
        end_ns = time.monotonic_ns()
        works = [work for work, _ in batch]
        live = [work for work in works if not work.frame.lossless]
        files = [work for work in works if work.frame.lossless]
        if files:
            with self._lock:
                self._unpublished.update({_key(work.frame): work for work in files})
            self._source.inferred(*files)
        if live:
            self._source.done(*live, outcome="detected")
        if model is self._detector:
            each_ms = (end_ns - start_ns) / 1e6 / len(works)
            self.tally.add(each_ms, len(works), sum(len(detections) for detections in found))
        self.stats.detected += len(works)
        self.stats.last_inference_ms = (end_ns - start_ns) / 1e6
        for work in works:
            self._observe("queue", (start_ns - work.frame.captured_ns) / 1e9)
            self._observe("inference", (end_ns - start_ns) / 1e9)
        return [
            self._record(work, model.model_name, start_ns, end_ns, detections)
            for work, detections in zip(works, found, strict=True)
        ]

    def _infer_before(self, fallback: Detector, item: Item) -> list[list[Detection]] | None:
        """What the model before finds in a frame that the new one failed on; None where it fails too."""
        work, pixels = item
        header, again = work.frame, pixels
        try:
            if not is_fitted(header, fallback.spec):
                header, boxed = refit(header, pixels, fallback.spec)
                again = boxed.reshape(-1).data
            return [fallback.detect(header, again)]
        except DetectorError as error:
            log.warning("nor does the model before detect it", camera=header.camera, error=str(error))
            return None

    def _failed(self, work: Work, error: DetectorError) -> None:
        self.stats.failed += 1
        header = work.frame
        outcome: Outcome = "bad_frame" if isinstance(error, BadFrame) else "inference_error"
        log.warning("frame not detected", camera=header.camera, seq=header.seq, cause=outcome, error=str(error))
        self._source.done(work, outcome=outcome)

    def _record(
        self, work: Work, model: str, start_ns: int, end_ns: int, detections: list[Detection]
    ) -> DetectionRecord:
        header = work.frame
        return DetectionRecord(
            camera=header.camera,
            session=header.session,
            seq=header.seq,
            order=work.order,
            broker=work.broker,
            worker=self._source.name,
            model=model,
            event_us=header.event_us,
            captured_ns=header.captured_ns,
            dispatched_ns=work.dispatched_ns,
            inference_start_ns=start_ns,
            inference_end_ns=end_ns,
            source_height=header.source_height,
            source_width=header.source_width,
            detections=detections,
        )

    def _publish(self, records: list[DetectionRecord], publisher: Publisher, *, patient: bool) -> None:
        """Hand records over; a worker that is behind hands over a few together, where they are `patient`."""
        now_s = time.monotonic()
        if not records:
            if self._lingering_since_s is not None:
                publisher.hurry()
                self._lingering_since_s = None
            return
        since_s = now_s if self._lingering_since_s is None else self._lingering_since_s
        next_s = now_s + self.stats.last_inference_ms / 1000
        behind = patient and len(records) >= self._detector.batch and self._source.has_more
        hurry = next_s - since_s > LINGER_S or not behind
        for record in records[:-1]:
            publisher.put(record, hurry=False)
        publisher.put(records[-1], hurry=hurry)
        self._lingering_since_s = None if hurry else since_s

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
        with self._lock:
            works = [work for record in records if (work := self._unpublished.pop(_key(record), None))]
        if works:
            self._source.done(*works, outcome=outcome)


def _key(frame: FrameHeader | DetectionRecord) -> tuple[str, str, int]:
    return frame.camera, frame.session, frame.seq
