"""A simulated scene as a live H.264 source: drawn, encoded and paced in real time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import av

from ingest.sim.encode import open_encoder, video_frame
from ingest.sim.h264 import (
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
        sets = find_parameter_sets(split_annexb(bytes(open_encoder(spec).extradata or b"")))
        if sets is None:
            raise RuntimeError("x264 gave no parameter sets; PyAV is built without libx264 or in an unknown way")
        self.parameter_sets: ParameterSets = sets

    def units(self, demand: Demand) -> Iterator[AccessUnit]:
        """See MediaSource."""
        encoder = open_encoder(self._street.spec)
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
        frame = video_frame(picture, index, self.fps, keyframe=keyframe)
        for packet in encoder.encode(frame):  # zero latency: always the one packet of this frame
            assert packet.pts is not None
            nals = [frame_index_sei(index), *split_annexb(bytes(packet))]
            packed = with_parameter_sets(nals, self.parameter_sets) if packet.is_keyframe else tuple(nals)
            yield AccessUnit(packed, packet.pts, bool(packet.is_keyframe))
