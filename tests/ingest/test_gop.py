from __future__ import annotations

import av
from hypothesis import given
from hypothesis import strategies as st

from ingest.gop import HeldPackets


def packet(size: int, keyframe: bool) -> av.Packet:
    made = av.Packet(bytes(size))
    made.is_keyframe = keyframe
    return made


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=40))
def test_what_is_held_begins_at_the_newest_keyframe_and_stays_in_bounds(stream: list[tuple[int, bool]]) -> None:
    held = HeldPackets(max_bytes=100, max_packets=8)
    packets = [packet(*each) for each in stream]
    for each in packets:
        held.add(each)
    kept = [each.packet for each in held.take()]
    assert held.take() == []
    assert sum(each.size for each in kept) <= 100 and len(kept) <= 8
    if kept:
        # Whole and in order, from the newest keyframe to the newest packet.
        assert kept[0].is_keyframe and not any(each.is_keyframe for each in kept[1:])
        assert kept == packets[-len(kept) :]


def test_a_group_that_outgrew_the_bounds_is_not_held_in_part() -> None:
    held = HeldPackets(max_bytes=1000, max_packets=3)
    for index in range(6):
        held.add(packet(1, index == 0))
    assert held.take() == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_each_uncounted_packet_is_counted_once(stream: list[tuple[bool, bool]], times: list[int]) -> None:
    held = HeldPackets(max_packets=100)
    expected = settled = 0
    for pts, (keyframe, counted) in enumerate(stream):
        if keyframe:
            settled += held.settle()
        made = packet(1, keyframe)
        made.pts = pts
        held.add(made, counted=counted)
        expected += bool(len(held)) and not counted
        if times and times[0] <= pts:
            settled += held.settle(before_pts=times.pop(0))
    settled += held.settle()
    assert settled == expected
    assert all(each.counted for each in held)
