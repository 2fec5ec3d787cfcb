"""One decoder and its books: every packet fed to it ends as one picture, or as a skipped frame with its cause."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import av.error
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ingest.frames import Delivery, Picture, Skipped
from ingest.gop import Held

# No codec reorders further than 16 pictures (H.264 and H.265 level limits); packets fed beyond twice that without a
# picture have been swallowed: the decoder does so silently with what comes before the first keyframe.
_MAX_DELAY = 32


class Decoder:
    """Decodes one stream's packets in the order they came."""

    def __init__(self, context: VideoCodecContext, time_base_s: float, timed: bool) -> None:
        """`timed` False: the stream's timestamps mean nothing, and pictures get none."""
        self.concealed = 0
        self.failed_in_a_row = 0
        self._context = context
        self._time_base_s = time_base_s
        self._timed = timed
        self._fed = 0  # packets inside, of which no picture has come yet and which are not counted otherwise
        self._interlaced = False
        self._counted: set[int | None] = set()  # time stamps of frames inside that have been counted already

    def decode(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        """Feed one packet; yields the pictures that it made ready, or its failure."""
        try:
            frames = self._context.decode(packet)
        except (av.error.FFmpegError, ValueError):
            yield from self._failed()
            return
        # A file's edit list cuts frames that the decoder needs all the same: it decodes and does not show them.
        self._fed += not packet.is_discard
        yield from self._pictures(frames, captured_ns)
        if self._fed > _MAX_DELAY:
            yield from self._swallowed(self._fed - _MAX_DELAY)

    def alone(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        """Decode one keyframe by itself. The decoder is empty afterwards, and must have been before."""
        frames = self._lone(packet)
        if frames is None:
            yield from self._failed()
            return
        self._fed += not packet.is_discard
        yield from self._pictures(frames, captured_ns)
        yield from self._swallowed(self._fed)

    def look(self, packets: Iterable[Packet[VideoStream]]) -> VideoFrame | None:
        """Decode packets outside the books, going on from where `look` left; the newest picture they gave."""
        newest: VideoFrame | None = None
        for packet in packets:
            with suppress(av.error.FFmpegError, ValueError):
                frames = self._context.decode(packet)
                newest = frames[-1] if frames else newest
        return newest

    def look_through(self, packets: Iterable[Packet[VideoStream]]) -> VideoFrame | None:
        """As `look`, but from a keyframe on and to the last picture, however they are reordered. Empty afterwards."""
        self.reset()
        newest = self.look(packets)
        with suppress(av.error.FFmpegError, ValueError):
            frames = self._context.decode(None)
            newest = frames[-1] if frames else newest
        self.reset()
        return newest

    def look_alone(self, packet: Packet[VideoStream]) -> VideoFrame | None:
        """Decode one keyframe by itself, outside the books; None when it gave no picture. Empty before and after."""
        return next(iter(self._lone(packet) or ()), None)

    def replay(self, held: Iterable[Held]) -> Iterator[Delivery]:
        """Decode packets from a keyframe on; those counted already are decoded for their references alone."""
        self.reset()
        for each in held:
            if not each.counted:
                yield from self.decode(each.packet, each.captured_ns)
                continue
            self._counted.add(each.packet.pts)
            with suppress(av.error.FFmpegError, ValueError):
                yield from self._pictures(self._context.decode(each.packet), each.captured_ns)

    def flush(self) -> Iterator[Delivery]:
        """The pictures that are still inside; it is empty afterwards."""
        frames: list[VideoFrame] = []
        with suppress(av.error.FFmpegError, ValueError):
            frames = self._context.decode(None)
        yield from self._pictures(frames, time.monotonic_ns())
        yield from self._swallowed(self._fed)
        self.reset()

    def reset(self) -> None:
        """Empty it: what `look` left inside is forgotten."""
        self._counted.clear()
        self._context.flush_buffers()

    def _lone(self, packet: Packet[VideoStream]) -> list[VideoFrame] | None:
        try:
            # A decoder that reorders would give a lone keyframe back only several keyframes later.
            return self._context.decode(packet) + self._context.decode(None)
        except (av.error.FFmpegError, ValueError):
            return None
        finally:
            self._context.flush_buffers()

    def _pictures(self, frames: list[VideoFrame], captured_ns: int) -> Iterator[Picture]:
        for frame in frames:
            if frame.pts in self._counted:
                self._counted.discard(frame.pts)
                continue
            self._fed = max(0, self._fed - 1)
            self.failed_in_a_row = 0
            self.concealed += frame.is_corrupt
            self._interlaced |= frame.interlaced_frame
            yield self.picture(frame, captured_ns)

    def picture(self, frame: VideoFrame, captured_ns: int) -> Picture:
        """A decoded frame with its time."""
        # Not `frame.time`: it is NaN for pictures that come out of a flush.
        timed = self._timed and frame.pts is not None
        return Picture(frame, (frame.pts or 0) * self._time_base_s if timed else None, captured_ns)

    def _failed(self) -> Iterator[Delivery]:
        self.failed_in_a_row += 1
        yield Skipped("decode_error", 1)

    def _swallowed(self, count: int) -> Iterator[Delivery]:
        self._fed -= count
        # Two packets of interlaced video, one a field, may make one picture: nothing is missing then.
        if count > 0 and not self._interlaced:
            self.failed_in_a_row += count
            yield Skipped("decode_error", count)
