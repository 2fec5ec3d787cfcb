"""Order: whatever the arrival, frames go on in order, once, and none waits longer than it may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.reorder import BROKERS, Reorder
from wire.messages import DetectionRecord

MakeRecord = Callable[..., DetectionRecord]


def feed(reorder: Reorder[int], record: DetectionRecord, now_s: float = 0.0) -> list[int]:
    """As the sink does; the item is the frame's number."""
    if reorder.is_duplicate(record):
        return []
    return reorder.push(record, record.seq, now_s)


@given(arrival=st.permutations(range(12)))
def test_any_arrival_of_a_whole_sequence_goes_on_in_order(detection_record: MakeRecord, arrival: list[int]) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    released = [item for seq in arrival for item in feed(reorder, detection_record(seq))]
    assert released == list(range(12))
    assert (reorder.counts.gaps, reorder.counts.late, reorder.held) == (0, 0, 0)


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["b1", "b2"]), st.floats(0, 0.4)), max_size=80),
    max_held=st.integers(1, 8),
)
def test_every_frame_goes_on_exactly_once_and_none_waits_too_long(
    detection_record: MakeRecord, steps: list[tuple[int, str, float]], max_held: int
) -> None:
    timeout_s = 1.0
    reorder: Reorder[int] = Reorder(timeout_s, max_held)
    given_to: dict[int, float] = {}
    released: list[int] = []
    offered = 0
    now_s = 0.0
    for order, broker, pause_s in steps:
        now_s += pause_s
        seq = order if broker == "b1" else 1000 + order
        offered += 1
        given_to.setdefault(seq, now_s)
        released += feed(reorder, detection_record(seq, order=order, broker=broker), now_s)
        released += reorder.expire(now_s)
        waiting = set(given_to) - set(released)
        assert reorder.held == len(waiting)
        assert len(waiting) <= 2 * max_held
        assert all(now_s - given_to[seq] < timeout_s for seq in waiting)
    released += reorder.expire(now_s + timeout_s + 0.001)  # floats
    assert sorted(released) == sorted(given_to)
    assert reorder.counts.duplicates == offered - len(given_to)
    for numbers in ([seq for seq in released if seq < 1000], [seq for seq in released if seq >= 1000]):
        out_of_order = sum(seq < max(numbers[:place]) for place, seq in enumerate(numbers) if place)
        assert out_of_order <= reorder.counts.late


def test_a_missing_frame_is_waited_for_and_then_given_up(detection_record: MakeRecord) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    assert feed(reorder, detection_record(0)) == [0]
    assert feed(reorder, detection_record(2), now_s=10.0) == []
    assert feed(reorder, detection_record(3), now_s=10.9) == []
    assert reorder.expire(10.99) == []
    assert reorder.expire(11.0) == [2, 3]
    assert reorder.counts.gaps == 1
    # It comes after all: used, out of order, and counted.
    assert feed(reorder, detection_record(1), now_s=12.0) == [1]
    assert reorder.counts.late == 1


def test_each_missing_frame_has_its_own_time(detection_record: MakeRecord) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    feed(reorder, detection_record(0))
    feed(reorder, detection_record(2), now_s=0.0)
    feed(reorder, detection_record(4), now_s=0.5)
    assert reorder.expire(1.0) == [2]
    assert reorder.expire(1.4) == []
    assert reorder.expire(1.5) == [4]


def test_too_many_held_frames_give_the_gap_up_early(detection_record: MakeRecord) -> None:
    reorder: Reorder[int] = Reorder(1.0, 3)
    feed(reorder, detection_record(0))
    for seq in (2, 3, 4):
        assert feed(reorder, detection_record(seq)) == []
    assert feed(reorder, detection_record(5)) == [2, 3, 4, 5]
    assert reorder.counts.gaps == 1


def test_what_was_before_the_first_frame_seen_is_no_gap(detection_record: MakeRecord) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    assert feed(reorder, detection_record(500)) == []
    assert reorder.expire(1.0) == [500]
    assert reorder.counts.gaps == 0
    assert feed(reorder, detection_record(501)) == [501]


def test_a_new_broker_begins_a_new_sequence_and_the_old_one_comes_to_its_end(detection_record: MakeRecord) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    assert feed(reorder, detection_record(0)) == [0]
    assert feed(reorder, detection_record(2)) == []
    assert feed(reorder, detection_record(10, order=0, broker="b2")) == [10]
    assert feed(reorder, detection_record(1)) == [1, 2]
    assert feed(reorder, detection_record(11, order=1, broker="b2")) == [11]


def test_a_forgotten_broker_keeps_no_frame(detection_record: MakeRecord) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    released = feed(reorder, detection_record(1))
    for number in range(BROKERS):
        released += feed(reorder, detection_record(100 + number, order=0, broker=f"new-{number}"))
    assert sorted(released) == [1, *range(100, 100 + BROKERS)]


@given(cut=st.integers(0, 10))
def test_a_restart_continues_the_sequence(detection_record: MakeRecord, cut: int) -> None:
    first: Reorder[int] = Reorder(1.0, 100)
    for seq in range(cut):
        feed(first, detection_record(seq))
    second: Reorder[int] = Reorder(1.0, 100, first.next_orders)
    assert feed(second, detection_record(cut + 1)) == []
    assert feed(second, detection_record(cut)) == [cut, cut + 1]
    assert second.counts.gaps == 0


@pytest.mark.parametrize("session", ["s1", "s2"])
def test_the_same_number_is_the_same_frame_only_in_its_session(detection_record: MakeRecord, session: str) -> None:
    reorder: Reorder[int] = Reorder(1.0, 100)
    feed(reorder, detection_record(0))
    assert reorder.is_duplicate(detection_record(0, session=session)) == (session == "s1")
