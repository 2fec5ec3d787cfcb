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
    kept = held.take()
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
