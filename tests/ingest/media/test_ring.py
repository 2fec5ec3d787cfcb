"""A ring is bounded by time and by bytes, always begins with a keyframe, and counts what it had to give up early."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.packet import Packet
from hypothesis import given
from hypothesis import strategies as st

from ingest.media.ring import OVERHEAD_BYTES, Kept, Mark, PacketRing, Segment, StreamFormat
from wire.messages import FrameHeader

FORMAT = StreamFormat("h264", None, (64, 48), "yuv420p", {}, Fraction(1, 1000), None)


def begin(ring: PacketRing) -> Segment:
    ring._segment = Segment(ring, FORMAT)
    return ring._segment


def packet(pts: int | None, keyframe: bool, size: int = 100) -> Packet:
    made = Packet(bytes(size))
    made.pts, made.is_keyframe = pts, keyframe
    return made


def header(seq: int, captured_ns: int) -> FrameHeader:
    return FrameHeader("c", "s", seq, False, 1000 * seq, captured_ns, "i420", 2, 2, 2, 2, 1.0, 0, 0)


def kept(ring: PacketRing) -> list[Kept]:
    return [each for group in ring._groups for each in group.packets]


def feed(ring: PacketRing, count: int, period_ms: int = 100, gop: int = 10, size: int = 100, start: int = 0) -> None:
    segment = ring._segment or begin(ring)
    for n in range(start, start + count):
        at_ns = n * period_ms * 1_000_000
        ring.mark(header(n, at_ns), n * period_ms, 0)
        segment.add(packet(n * period_ms, n % gop == 0, size), at_ns)


def mark_of(ring: PacketRing, seq: int) -> Mark:
    mark = ring.find("s", seq)
    assert mark is not None
    return mark


def test_it_holds_the_time_it_promises_and_one_group_more_at_most() -> None:
    ring = PacketRing(keep_s=5, max_bytes=10**9)
    feed(ring, 1000)
    times_ms = [each.packet.pts for each in kept(ring)]
    assert times_ms[-1] == 99_900
    # Groups of a second; looked at when the newest began, at 99.0 s.
    assert 99_000 - 5_000 - 1_000 <= times_ms[0] <= 99_000 - 5_000
    assert ring.find("s", 900) is None
    assert ring.to_decode(mark_of(ring, 999)) is not None
    assert len(ring._marks) <= 70
    assert ring.shortened == 0


def test_it_holds_the_bytes_it_may_and_counts_what_had_to_go() -> None:
    ring = PacketRing(keep_s=3600, max_bytes=50_000)
    feed(ring, 1000, size=1000)
    assert 50_000 - 10 * 1600 < ring.bytes <= 50_000
    assert ring.bytes == sum(each.packet.size + OVERHEAD_BYTES for each in kept(ring))
    assert kept(ring)[0].packet.is_keyframe
    assert ring.shortened == 100 - len(ring._groups)


def test_a_group_larger_than_the_ring_is_given_up_whole_and_the_next_keyframe_taken() -> None:
    ring = PacketRing(keep_s=3600, max_bytes=5_000)
    feed(ring, 50, gop=10**9)  # only the very first is a keyframe
    assert (kept(ring), ring.bytes) == ([], 0)
    assert ring.shortened == 1
    assert ring.to_decode(mark_of(ring, 49)) is None
    assert ring.seek(mark_of(ring, 49), 1) is None
    feed(ring, 3, gop=50, start=50)
    assert [each.packet.pts for each in kept(ring)] == [5000, 5100, 5200]


@given(
    steps=st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 3000),
            st.one_of(st.none(), st.integers(-(10**9), 10**9)),
            st.integers(0, 2000),
        ),
        max_size=60,
    ),
    keep_s=st.floats(0.1, 10),
    max_bytes=st.integers(600, 20_000),
)
def test_whatever_comes_it_stays_in_bounds_and_begins_with_keyframes(
    steps: list[tuple[bool, int, int | None, int]], keep_s: float, max_bytes: int
) -> None:
    ring = PacketRing(keep_s, max_bytes)
    segment = begin(ring)
    at_ns = 0
    for keyframe, pause_ms, pts, size in steps:
        at_ns += pause_ms * 1_000_000
        segment.add(packet(pts, keyframe, size), at_ns)
        assert ring.bytes <= max_bytes
        assert ring.bytes == sum(group.bytes for group in ring._groups)
        assert all(group.packets[0].packet.is_keyframe for group in ring._groups)


def test_a_slowly_read_file_is_kept_by_its_own_time() -> None:
    ring = PacketRing(keep_s=5, max_bytes=10**9)
    segment = begin(ring)
    for n in range(200):  # 25 frames a second, of which we manage one
        segment.add(packet(n * 40, n % 10 == 0), n * 1_000_000_000)
    assert kept(ring)[0].packet.pts <= 199 * 40 - 5000


def test_a_reader_cannot_read_on_over_what_was_dropped() -> None:
    ring = PacketRing(keep_s=5, max_bytes=10**9)
    feed(ring, 30)
    cursor = ring.seek(mark_of(ring, 25), before_s=1)
    assert cursor is not None
    fresh = ring.read(cursor)
    assert fresh is not None
    assert [each.packet.pts for each in fresh] == [*range(1000, 3000, 100)]
    feed(ring, 5, start=30)
    assert len(ring.read(cursor) or []) == 5
    assert ring.read(cursor) == []
    feed(ring, 200, start=35)
    assert ring.read(cursor) is None


def test_a_reader_that_was_given_up_adds_nothing_when_it_wakes(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    ring = PacketRing(keep_s=5, max_bytes=10**9)
    with av.open(str(write_clip(tmp_path / "a.mp4", frames=10))) as container:
        stream = container.streams.video[0]
        packets: list[Any] = [each for each in container.demux(stream) if each.size]
        old, new = ring.begin(stream), ring.begin(stream)
        old.add(packets[0], 1)
        assert kept(ring) == []
        new.add(packets[0], 2)
        assert len(kept(ring)) == 1
        for _ in range(10):  # a camera that comes and goes
            ring.begin(stream).add(packets[0], 3)
        assert len({group.segment for group in ring._groups}) <= 3


def test_what_is_dropped_is_gone_at_once(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    """A closed reader's packets hold its decoder's memory, and Python looks for circles once in many minutes."""
    ring = PacketRing(keep_s=5, max_bytes=10**9)
    segments = []
    gc.disable()
    try:
        for _ in range(5):
            with av.open(str(write_clip(tmp_path / "a.mp4", frames=10))) as container:
                segment = ring.begin(container.streams.video[0])
                segments.append(weakref.ref(segment))
                for each in container.demux(video=0):
                    if each.size:
                        segment.add(each, 1)
            del segment, each
        assert [one() is None for one in segments] == [True, True, False, False, False]
    finally:
        gc.enable()


def test_reading_beside_the_camera_sees_only_whole_truths() -> None:
    ring = PacketRing(keep_s=1, max_bytes=10**9)
    feed(ring, 20)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            newest = ring.find("s", len(ring._marks) and ring._marks[-1].seq)
            found = newest and ring.to_decode(newest)
            if newest and found:
                packets, at = found
                if not packets[0].packet.is_keyframe or packets[at].packet.pts != newest.pts:
                    wrong.append(newest)

    thread = threading.Thread(target=read)
    thread.start()
    feed(ring, 20_000, start=20)
    stop.set()
    thread.join()
    assert not wrong
