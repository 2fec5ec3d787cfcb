"""A camera's newest packets, still encoded, from a keyframe on; and which of them became which numbered frame.

The camera's thread adds each packet as it comes: a reference, no copy (0.3 us). Others read. A group of packets from
a keyframe to the next is kept or dropped whole, because without its keyframe nothing of it can be decoded.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av
import av.error
from av.packet import Packet
from av.video.stream import VideoStream

from wire.messages import FrameHeader

# A packet costs its object, FFmpeg's own and padding beside its bytes: measured 0.5 KB.
OVERHEAD_BYTES = 512
# A closed reader's packets keep its decoder's memory alive, so a camera that comes and goes keeps few of them.
MAX_SEGMENTS = 3
# Frames sent, of which the packets may still be here: at 240 a second more than a minute.
MAX_MARKS = 16_384


@dataclass(frozen=True)
class StreamFormat:
    """What decoders and containers must know of a stream, independent of the connection it came by."""

    codec: str
    extradata: bytes | None
    size: tuple[int, int]  # width and height
    pixel_format: str | None
    options: dict[str, str]  # of the decoder
    time_base: Fraction
    template: VideoStream | None  # for the same stream in another container; None: no container takes this codec

    @classmethod
    def of(cls, stream: VideoStream) -> StreamFormat:
        """The format of an open source's stream."""
        context = stream.codec_context
        return cls(
            context.codec.name,
            context.extradata,
            (stream.width, stream.height),
            context.pix_fmt,
            dict(context.options),
            stream.time_base or Fraction(1, 90_000),
            _template(stream),
        )


def _template(stream: VideoStream) -> VideoStream | None:
    # The source's own stream cannot be copied from any more when its connection is closed. Matroska takes any codec;
    # nothing is ever written to it.
    try:
        return av.open(io.BytesIO(), "w", format="matroska").add_stream_from_template(stream, opaque=True)
    except (av.error.FFmpegError, ValueError):
        return None


class Kept(NamedTuple):
    """One packet, and when it came."""

    packet: Packet[VideoStream]
    captured_ns: int


@dataclass
class Group:
    """A keyframe and the packets up to the next."""

    number: int  # rises
    segment: Segment
    packets: list[Kept]
    bytes: int


class Mark(NamedTuple):
    """A frame that was sent to detectors, and the packet it was decoded from."""

    session: str
    seq: int
    event_us: int
    pts: int | None
    captured_ns: int
    turn: int  # degrees clockwise by which its picture must be turned to stand upright
    segment: Segment


@dataclass
class Cursor:
    """How far somebody has read."""

    segment: Segment
    group: int
    at: int = 0
    more: bool = False  # there is more than was asked for


class Segment:
    """What one reader delivers, from its opening to its end. One thread adds to it."""

    def __init__(self, ring: PacketRing, stream_format: StreamFormat) -> None:
        self.format = stream_format
        self.ended = False
        self._ring = ring
        self._group: Group | None = None

    def add(self, packet: Packet[VideoStream], captured_ns: int) -> None:
        """Keep a packet, with the CLOCK_MONOTONIC time of its arrival."""
        if self.ended:
            return  # a reader that was given up has woken
        size = packet.size + OVERHEAD_BYTES
        kept = Kept(packet, captured_ns)
        group = self._group  # `end` comes from another thread
        if packet.is_keyframe:
            self._group = self._ring.begin_group(self, kept, size)
        elif group is None:
            return  # of no use without its keyframe
        else:
            group.packets.append(kept)
            group.bytes += size
        ring = self._ring
        ring.bytes += size
        if ring.bytes > ring.max_bytes and not ring.shorten():
            self._group = None

    def end(self) -> None:
        """No more will come; harmless to repeat."""
        self.ended = True
        # A circle of the two would keep the packets, and their reader's megabytes, until Python looks for circles.
        self._group = None


class PacketRing:
    """The packets of one camera, bounded by time and by bytes."""

    def __init__(self, keep_s: float, max_bytes: int) -> None:
        """Keeps at least `keep_s` of packets, on the clock and in stream time, as far as `max_bytes` allows."""
        self.max_bytes = max_bytes
        self.bytes = 0
        self.shortened = 0  # groups dropped for their size that were not old enough to go
        self._keep_s = keep_s
        self._groups: deque[Group] = deque()
        self._marks: deque[Mark] = deque(maxlen=MAX_MARKS)
        self._segment: Segment | None = None
        self._next_number = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> bool:
        """Whether any reader has had packets to keep."""
        return self._segment is not None

    def begin(self, stream: VideoStream) -> Segment:
        """A reader has opened the camera; what an earlier one still adds is not kept."""
        segment = Segment(self, StreamFormat.of(stream))
        with self._lock:
            if self._segment is not None:
                self._segment.end()
            self._segment = segment
            segments = list(dict.fromkeys(group.segment for group in self._groups))
            while len(segments) >= MAX_SEGMENTS:
                oldest = segments.pop(0)
                while self._groups and self._groups[0].segment is oldest:
                    self._drop()
        return segment

    def begin_group(self, segment: Segment, keyframe: Kept, size: int) -> Group:
        """A keyframe comes: drop what has become too old. Called by Segment."""
        with self._lock:
            # The group in which keep_s begins stays: it is needed from its keyframe on.
            while len(self._groups) > 1 and self._is_old(self._groups[1], segment, keyframe):
                self._drop()
            oldest_ns = self._groups[0].packets[0].captured_ns if self._groups else keyframe.captured_ns
            while self._marks and self._marks[0].captured_ns < oldest_ns:
                self._marks.popleft()
            # Anew: a reader that was given up may have been amid its last packet.
            self.bytes = sum(group.bytes for group in self._groups)
            group = Group(self._next_number, segment, [keyframe], size)
            self._next_number += 1
            self._groups.append(group)
        return group

    def _is_old(self, group: Group, segment: Segment, newest: Kept) -> bool:
        first = group.packets[0]
        if newest.captured_ns - first.captured_ns < self._keep_s * 1e9:
            return False
        if group.segment is not segment or newest.packet.pts is None or first.packet.pts is None:
            return True
        # A file that is read more slowly than it plays. Time stamps that leapt tell nothing.
        age_s = float((newest.packet.pts - first.packet.pts) * segment.format.time_base)
        return not 0 <= age_s < self._keep_s

    def shorten(self) -> bool:
        """Too many bytes: drop the oldest groups; False when the newest had to go as well. Called by Segment."""
        with self._lock:
            while self._groups and self.bytes > self.max_bytes:
                self._drop()
                self.shortened += 1
            return bool(self._groups)

    def _drop(self) -> None:
        self.bytes -= self._groups.popleft().bytes

    def mark(self, header: FrameHeader, pts: int | None, turn: int) -> None:
        """A frame is sent: `pts` is its picture's own, `turn` makes it upright."""
        if (segment := self._segment) is None:
            return
        mark = Mark(header.session, header.seq, header.event_us, pts, header.captured_ns, turn, segment)
        with self._lock:
            self._marks.append(mark)

    def find(self, session: str, seq: int) -> Mark | None:
        """The frame of that number, if it was sent not too long ago."""
        with self._lock:
            marks = list(self._marks)
        return next((mark for mark in reversed(marks) if mark.seq == seq and mark.session == session), None)

    def to_decode(self, mark: Mark) -> tuple[list[Kept], int] | None:
        """The packets from the keyframe that a frame needs, on to the newest, and where in them the frame's own is.

        None when they are not here any more. Frames without a time stamp are known by their packet's arrival, which is
        right where the codec does not reorder.
        """
        groups = self._of(mark.segment)
        for index in reversed(range(len(groups))):
            at = _position(groups[index].packets, mark)
            if at is None:
                continue
            keyframe_pts = groups[index].packets[0].packet.pts
            # Shown before its keyframe, it refers to the group before.
            leads = mark.pts is not None and keyframe_pts is not None and mark.pts < keyframe_pts
            first = index - 1 if leads and index else index
            needed = [kept for group in groups[first:] for kept in tuple(group.packets)]
            return needed, at + sum(len(group.packets) for group in groups[first:index])
        return None

    def seek(self, mark: Mark, before_s: float) -> Cursor | None:
        """A place to read from: the newest keyframe that lies `before_s` before the frame, else the oldest one kept.

        None when the frame's own packet is not here any more.
        """
        groups = self._of(mark.segment)
        at = next((i for i in reversed(range(len(groups))) if _position(groups[i].packets, mark) is not None), None)
        if at is None:
            return None
        while at and after_s(mark, groups[at].packets[0]) > -before_s:
            at -= 1
        return Cursor(mark.segment, groups[at].number)

    def peek(self, cursor: Cursor) -> Kept | None:
        """The first packet of a cursor's group; None when it has been dropped."""
        return next((group.packets[0] for group in self._of(cursor.segment) if group.number == cursor.group), None)

    def read(self, cursor: Cursor, until_ns: float = float("inf")) -> list[Kept] | None:
        """What came since the last reading and before `until_ns`; moves the cursor.

        None when some of it has been dropped unread.
        """
        groups = self._of(cursor.segment)
        if not groups or groups[0].number > cursor.group:
            return None
        fresh: list[Kept] = []
        cursor.more = False
        for group in groups:
            if group.number < cursor.group:
                continue
            if group.number > cursor.group:
                cursor.group, cursor.at = group.number, 0
            for kept in group.packets[cursor.at :]:
                if kept.captured_ns >= until_ns:
                    cursor.more = True
                    return fresh
                fresh.append(kept)
                cursor.at += 1
        return fresh

    def _of(self, segment: Segment) -> list[Group]:
        with self._lock:
            return [group for group in self._groups if group.segment is segment]


def _position(packets: list[Kept], mark: Mark) -> int | None:
    for index, kept in enumerate(packets):
        if kept.captured_ns == mark.captured_ns if mark.pts is None else kept.packet.pts == mark.pts:
            return index
    return None


def after_s(mark: Mark, kept: Kept) -> float:
    """How long after a frame a packet is shown (seconds); by arrival, where there are no time stamps."""
    if mark.pts is None or kept.packet.pts is None:
        return (kept.captured_ns - mark.captured_ns) / 1e9
    return float((kept.packet.pts - mark.pts) * mark.segment.format.time_base)
