"""An H.264 video file as an endless source: demuxed and looped without re-encoding, paced in real time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from ingest.sim.h264 import (
    RTP_CLOCK_HZ,
    AccessUnit,
    ParameterSets,
    find_parameter_sets,
    split_annexb,
    with_parameter_sets,
)
from ingest.sim.source import Demand


class FileSource:
    """Loops the first video track of `path`. It stands still while nobody watches; time goes on over loops.

    Raises ValueError when the file is not a readable video with H.264 in it.
    """

    keyframe_on_demand = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path}: has no video track")
                stream = container.streams.video[0]
                if stream.codec_context.name != "h264":
                    raise ValueError(
                        f"{self.path}: video is {stream.codec_context.name}, and the simulated camera serves H.264 "
                        "as it is; convert it, for example: ffmpeg -i IN -c:v libx264 OUT.mp4"
                    )
                self.fps = float(stream.average_rate or stream.guessed_rate or 25)
            first = next(self._one_pass(), None)
        except (OSError, av.error.FFmpegError) as error:
            raise ValueError(f"{self.path}: cannot be read as a video: {error}") from error
        sets = find_parameter_sets(first[2]) if first else None
        if sets is None:
            raise ValueError(f"{self.path}: has no H.264 keyframe with its parameter sets")
        self.parameter_sets: ParameterSets = sets

    def units(self, demand: Demand) -> Iterator[AccessUnit]:
        """See MediaSource."""
        loop_began = Fraction(0)  # stream time in seconds at which this pass of the file began
        while True:
            loop_ends = loop_began
            clock_base: float | None = None  # monotonic time that stream time zero would have
            for decode_s, present_s, nals, keyframe in self._one_pass():
                due = loop_began + decode_s
                if clock_base is None or not demand.watched:
                    if not demand.wait_watched():
                        return
                    clock_base = time.monotonic() - float(due)
                if not demand.wait_until(clock_base + float(due)):
                    return
                packed = with_parameter_sets(nals, self.parameter_sets) if keyframe else tuple(nals)
                yield AccessUnit(packed, round((loop_began + present_s) * RTP_CLOCK_HZ), keyframe)
                loop_ends = max(loop_ends, due)
            loop_began = loop_ends + 1 / Fraction(self.fps).limit_denominator(1001)

    def _one_pass(self) -> Iterator[tuple[Fraction, Fraction, list[bytes], bool]]:
        """(decoding time s, presentation time s, NAL units, keyframe) from the first keyframe to the end.

        Decoding times begin at zero. A file that breaks off ends the pass there.
        """
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            to_annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
            frame_s = 1 / Fraction(self.fps).limit_denominator(1001)
            first_s: Fraction | None = None
            last_s = -frame_s
            for packet in container.demux(stream):
                for filtered in to_annexb.filter(packet if packet.size else None):
                    if first_s is None and not filtered.is_keyframe:
                        continue
                    base = filtered.time_base or Fraction(1, RTP_CLOCK_HZ)
                    decode_s = None if filtered.dts is None else filtered.dts * base
                    if first_s is None:
                        first_s = decode_s or Fraction(0)
                    # Raw streams carry no times: then one picture follows another at the frame rate.
                    due_s = last_s + frame_s if decode_s is None else max(decode_s - first_s, last_s)
                    shown_s = due_s if filtered.pts is None else filtered.pts * base - first_s
                    last_s = due_s
                    nals = split_annexb(bytes(filtered))
                    if nals:
                        yield due_s, shown_s, nals, bool(filtered.is_keyframe)
