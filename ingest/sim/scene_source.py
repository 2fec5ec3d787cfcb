"""A simulated scene as a live H.264 source: drawn, encoded and paced in real time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType

from ingest.sim.h264 import (
    RTP_CLOCK_HZ,
    AccessUnit,
    ParameterSets,
    find_parameter_sets,
    frame_index_sei,
    split_annexb,
    with_parameter_sets,
)
from ingest.sim.scene import Street
from ingest.sim.scene_url import SceneSpec
from ingest.sim.source import Demand

# Constant quality: x264's default is 23. 25 keeps a 720p keyframe near 200 kB and looks like a good camera.
_CRF = 25


class SceneSource:
    """Plays a scene in real time from frame 0, as long as somebody watches; between viewers the scene stands still.

    Every frame carries its index (see `h264.frame_index`), so a consumer can look up its ground truth. When the machine
    is too slow, frames are left out (`skipped`) rather than late, as a camera does.
    """

    keyframe_on_demand = True

    def __init__(self, spec: SceneSpec) -> None:
        self.fps = spec.fps
        self.skipped = 0  # frames that came too late to be drawn
        self._street = Street(spec)
        self._street.render(0)  # the background now, not when the first viewer waits
        sets = find_parameter_sets(split_annexb(bytes(self._encoder().extradata or b"")))
        if sets is None:
            raise RuntimeError("x264 gave no parameter sets; PyAV is built without libx264 or in an unknown way")
        self.parameter_sets: ParameterSets = sets

    def units(self, demand: Demand) -> Iterator[AccessUnit]:
        """See MediaSource."""
        encoder = self._encoder()
        index = 0
        clock_base: float | None = None  # monotonic time of frame 0
        while True:
            if clock_base is None or not demand.watched:
                if not demand.wait_watched():
                    return
                clock_base = time.monotonic() - index / self.fps
            if not demand.wait_until(clock_base + index / self.fps):
                return
            late = int((time.monotonic() - clock_base) * self.fps) - index
            if late > 1:  # one frame's delay is only the scheduler's
                self.skipped += late
                index += late
            yield from self._encode(encoder, index, demand.take_keyframe_request())
            index += 1

    def _encode(self, encoder: av.VideoCodecContext, index: int, keyframe: bool) -> Iterator[AccessUnit]:
        picture, _ = self._street.render(index)
        frame = av.VideoFrame.from_ndarray(
            np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8), format="yuv420p"
        )
        frame.pts = round(index * RTP_CLOCK_HZ / self.fps)
        frame.time_base = Fraction(1, RTP_CLOCK_HZ)
        if keyframe:
            frame.pict_type = PictureType.I
        for packet in encoder.encode(frame):  # zero latency: always the one packet of this frame
            assert packet.pts is not None
            nals = [frame_index_sei(index), *split_annexb(bytes(packet))]
            packed = with_parameter_sets(nals, self.parameter_sets) if packet.is_keyframe else tuple(nals)
            yield AccessUnit(packed, packet.pts, bool(packet.is_keyframe))

    def _encoder(self) -> av.VideoCodecContext:
        spec = self._street.spec
        encoder = av.VideoCodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = spec.width, spec.height, "yuv420p"
        encoder.time_base = Fraction(1, RTP_CLOCK_HZ)
        encoder.framerate = Fraction(spec.fps).limit_denominator(1001)
        encoder.gop_size = max(1, round(spec.gop_s * spec.fps))
        encoder.thread_count = 1  # one camera must not take the machine
        encoder.flags |= Flags.global_header  # the parameter sets come as extradata
        encoder.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": str(_CRF),
            "forced-idr": "1",
            "x264-params": "scenecut=0",  # keyframes where the GOP says, not where a van drives through
        }
        encoder.open()
        return encoder
