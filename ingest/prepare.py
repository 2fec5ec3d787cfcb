"""One decoded picture on its way to the wire: limit, gate, letterbox, header. Every picture is counted once."""

from __future__ import annotations

import time

import numpy as np
import structlog
from av import VideoFrame
from numpy.typing import NDArray

from ingest.clock import EventClock
from ingest.frames import Picture
from ingest.letterbox import Letterboxer
from ingest.limit import FpsLimit
from ingest.media.ring import PacketRing
from ingest.motion import MotionGate
from ingest.planes import clockwise_turn
from ingest.sameness import Sameness
from ingest.settings import CameraSettings
from ingest.status import CameraStatus
from wire.messages import FrameHeader, InputSpec
from wire.metrics import observe
from wire.producer import CameraPort

log = structlog.get_logger()


class Preparation:
    """What one camera does with each picture. It outlives readers, so that event time and frame numbers go on rising.

    One thread uses it at a time.
    """

    def __init__(
        self, settings: CameraSettings, port: CameraPort, status: CameraStatus, ring: PacketRing | None = None
    ) -> None:
        """`ring` is told which frames were sent, so that their pictures can be found again."""
        self.ring = ring
        self.clock = EventClock(status.live)
        self._settings = settings
        self.port = port
        self.status = status
        self._limit = FpsLimit(settings.fps)
        self._gate = MotionGate(settings.motion)
        self._sameness = Sameness(settings.same_level if status.live else None)
        self._letterboxer = Letterboxer()
        self._spoiled = False

    def stamp(self, picture: Picture, nominal_s: float) -> int:
        """The picture's event time (microseconds since the epoch)."""
        jumps = self.clock.jumps
        event_us = self.clock.stamp(picture.pts_s, picture.captured_ns, nominal_s)
        self.status.lag_us = self.clock.lag_us
        if self.clock.jumps != jumps:
            self.status.clock_jumps += 1
            what = (
                "system clock was set, event time follows" if self.clock.last_jump_was_ours else "source clock jumped"
            )
            log.warning(what, camera=self.status.camera, by_ms=self.clock.last_jump_us // 1000)
        return event_us

    def handle(self, picture: Picture, event_us: int) -> None:
        """Count the picture as captured, then drop it with its cause, or send it."""
        ledger = self.port.ledger
        ledger.captured()
        spec = self.port.spec
        if spec is None:
            ledger.dropped("no_model")
            return
        try:
            self._sameness.look(picture.image, picture.captured_ns)
            self.status.same_s = self._sameness.same_s
            if self.clock.catching_up:
                ledger.dropped("stale")
                return
            # Cheapest first: the limit looks at a number, the gate at a few thousand pixels.
            if not self._limit.passes(event_us):
                ledger.dropped("rate_limited")
                return
            if not self._gate.passes(picture.image, event_us):
                ledger.dropped("static")
                return
            sendable = self._letterbox(picture, event_us, spec)
        # A picture that our own code stumbles over must cost that picture, not the camera, and must be counted.
        except Exception:
            ledger.dropped("decode_error")
            if not self._spoiled:
                log.exception("a picture could not be prepared; later ones are only counted", camera=self.status.camera)
            self._spoiled = True
            return
        observe("capture", (time.monotonic_ns() - picture.captured_ns) / 1e9)
        self.port.send(*sendable)

    def _letterbox(self, picture: Picture, event_us: int, spec: InputSpec) -> tuple[FrameHeader, NDArray[np.uint8]]:
        rotate = self._settings.rotate
        image = picture.image
        if isinstance(image, VideoFrame):
            turn = clockwise_turn(image) if rotate == "auto" else rotate
            boxed = self._letterboxer.frame(image, turn, spec)
        else:
            # OpenCV has turned it as its EXIF mark says.
            turn = 0 if rotate == "auto" else rotate
            boxed = self._letterboxer.image(image, turn, spec)
        box = boxed.box
        header = FrameHeader(
            camera=self.status.camera,
            session=self.port.session,
            seq=self.status.next_seq(),
            lossless=self.port.lossless,
            event_us=event_us,
            captured_ns=picture.captured_ns,
            pixel_format=boxed.pixel_format,
            height=box.height,
            width=box.width,
            source_height=boxed.source_height,
            source_width=boxed.source_width,
            scale=box.scale,
            pad_left=box.left,
            pad_top=box.top,
        )
        if self.ring is not None and isinstance(image, VideoFrame):
            self.ring.mark(header, image.pts, turn)
        return header, boxed.pixels
