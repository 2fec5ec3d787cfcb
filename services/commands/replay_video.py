"""Video through the model, for `sparsecam replay`: each frame as the live path would have prepared it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import structlog
from av import VideoFrame

from detector.detector import Detector
from ingest.clock import EventClock
from ingest.errors import SourceError
from ingest.frames import Picture
from ingest.letterbox import Letterboxed, Letterboxer
from ingest.limit import FpsLimit
from ingest.motion import MotionGate
from ingest.planes import clockwise_turn
from ingest.reader import open_reader
from ingest.settings import CameraSettings
from services.commands.replay_input import Clip, Counts
from services.config import Config
from wire.logs import redact
from wire.messages import Detection, DetectionRecord, FrameHeader, InputSpec

log = structlog.get_logger()

MADE_BY = "replay"  # in place of a broker's and a worker's name


class VideoPlayer:
    """Plays clips through a detector. A camera's clips follow one another in event time; each begins at `start_us`."""

    def __init__(
        self, config: Config, detector: Detector, start_us: int, counts: Counts, stop: threading.Event
    ) -> None:
        self._config = config
        self._detector = detector
        self._start_us = start_us
        self._counts = counts
        self._stop = stop
        self._clocks: dict[str, EventClock] = {}
        self._sessions = 0

    def frames(self, clip: Clip) -> Iterator[DetectionRecord]:
        """The clip's frames, detected. Raises SourceError, and what the detector raises."""
        settings = _settings(self._config, clip)
        source, reader = open_reader(settings, self._config.ingest.max_pixels)
        self._sessions += 1
        clock = self._clocks.setdefault(clip.camera, EventClock(live=False, wall_us=lambda: self._start_us))
        clock.restart()
        session = f"{MADE_BY}-{self._sessions}"
        prepare = _Preparation(settings, self._detector.spec)
        seq = 0
        try:
            for delivery in reader.deliveries():
                if self._stop.is_set():
                    return
                if not isinstance(delivery, Picture):
                    self._counts.undecoded += delivery.count
                    continue
                event_us = clock.stamp(delivery.pts_s, delivery.captured_ns, reader.nominal_s)
                if not prepare.wants(delivery, event_us):
                    self._counts.passed_over += 1
                    continue
                boxed = prepare.letterbox(delivery)
                header = _header(clip.camera, session, seq, event_us, boxed)
                yield _record(header, self._detector.model_name, self._detector.detect(header, boxed.pixels))
                seq += 1
            if reader.defect is not None:
                log.warning("source is damaged", error=reader.defect.what)
        except SourceError as error:
            # What was read until a file broke off is worth its alerts.
            if not seq:
                raise
            log.warning("source broke off", source=source.shown, error=redact(str(error)))
        finally:
            reader.close()


def _settings(config: Config, clip: Clip) -> CameraSettings:
    """The camera's own settings (fps, motion gate, rotation), but for where its pictures come from."""
    camera = config.cameras.get(clip.camera)
    own = camera.model_dump() if camera else {}
    return CameraSettings.model_validate({**own, "source": clip.source, "live": False, "loop": False})


class _Preparation:
    """Limit, gate and letterbox of one clip."""

    def __init__(self, settings: CameraSettings, spec: InputSpec) -> None:
        self._turn = settings.rotate
        self._spec = spec
        self._limit = FpsLimit(settings.fps)
        self._gate = MotionGate(settings.motion)
        self._letterboxer = Letterboxer()

    def wants(self, picture: Picture, event_us: int) -> bool:
        """Whether the live path would detect it."""
        return self._limit.passes(event_us) and self._gate.passes(picture.image, event_us)

    def letterbox(self, picture: Picture) -> Letterboxed:
        """The detector's input."""
        image, turn = picture.image, self._turn
        if isinstance(image, VideoFrame):
            return self._letterboxer.frame(image, clockwise_turn(image) if turn == "auto" else turn, self._spec)
        return self._letterboxer.image(image, 0 if turn == "auto" else turn, self._spec)


def _header(camera: str, session: str, seq: int, event_us: int, boxed: Letterboxed) -> FrameHeader:
    return FrameHeader(
        camera=camera,
        session=session,
        seq=seq,
        lossless=True,
        event_us=event_us,
        captured_ns=0,  # the machine's own times would make each replay another
        pixel_format=boxed.pixel_format,
        height=boxed.box.height,
        width=boxed.box.width,
        source_height=boxed.source_height,
        source_width=boxed.source_width,
        scale=boxed.box.scale,
        pad_left=boxed.box.left,
        pad_top=boxed.box.top,
    )


def _record(header: FrameHeader, model: str, detections: list[Detection]) -> DetectionRecord:
    return DetectionRecord(
        camera=header.camera,
        session=header.session,
        seq=header.seq,
        order=header.seq,
        broker=MADE_BY,
        worker=MADE_BY,
        model=model,
        event_us=header.event_us,
        captured_ns=0,
        dispatched_ns=0,
        inference_start_ns=0,
        inference_end_ns=0,
        source_height=header.source_height,
        source_width=header.source_width,
        detections=detections,
    )
