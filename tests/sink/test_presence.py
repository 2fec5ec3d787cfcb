"""presence: k of n by label or by track, and the same findings from the same frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.rules import KINDS
from sink.rules.presence import PresenceState
from sink.settings import PresenceRule, SceneSettings
from sink.tracks import Finding, TrackedFrame
from wire.messages import Detection, DetectionRecord

MakeRecord = Callable[..., DetectionRecord]
Tracked = Callable[[DetectionRecord], TrackedFrame]

SCENE = SceneSettings()


def found(rule: PresenceRule, frames: Iterable[TrackedFrame], state: PresenceState | None = None) -> list[tuple]:
    """(frame, label) of every finding."""
    kept = state or PresenceState()
    step = KINDS["presence"].step
    return [(frame.record.seq, one.label) for frame in frames for one in step(rule, kept, frame, SCENE)]


def reference(hits: list[bool], k: int, n: int) -> list[int]:
    """k of n, as one would say it."""
    return [now for now, hit in enumerate(hits) if hit and sum(hits[max(0, now - n + 1) : now + 1]) >= k]


cases = st.tuples(st.lists(st.booleans(), max_size=60), st.integers(1, 6), st.integers(0, 6))


@given(case=cases)
def test_k_of_n_equals_the_plain_reference(
    detection_record: MakeRecord, of_detections: Tracked, case: tuple[list[bool], int, int]
) -> None:
    hits, k, more = case
    rule = PresenceRule(labels=["pistol"], confirm_frames=k, window_frames=k + more)
    frames = [of_detections(detection_record(seq, "pistol" if hit else "cup")) for seq, hit in enumerate(hits)]
    assert [seq for seq, _ in found(rule, frames)] == reference(hits, k, k + more)


@given(case=cases, cut=st.integers(0, 60))
def test_a_state_that_was_stored_and_loaded_finds_the_same(
    detection_record: MakeRecord, of_detections: Tracked, case: tuple[list[bool], int, int], cut: int
) -> None:
    hits, k, more = case
    rule = PresenceRule(confirm_frames=k, window_frames=k + more)
    frames = [of_detections(detection_record(seq, *(["pistol"] * hit))) for seq, hit in enumerate(hits)]
    state = PresenceState()
    before = found(rule, frames[:cut], state)
    restored = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=PresenceState)
    assert before + found(rule, frames[cut:], restored) == found(rule, frames)


@given(case=cases)
def test_a_replay_finds_the_same(
    detection_record: MakeRecord, of_detections: Tracked, case: tuple[list[bool], int, int]
) -> None:
    hits, k, more = case
    rule = PresenceRule(confirm_frames=k, window_frames=k + more)
    state = PresenceState()
    first, again = (
        found(
            rule,
            [
                of_detections(detection_record(seq, *(["pistol"] * hit), session=session))
                for seq, hit in enumerate(hits)
            ],
            state,
        )
        for session in ("s1", "s2")
    )
    assert first == again


@given(order=st.permutations(range(5)))
def test_frames_that_come_out_of_order_confirm_each_other_too(
    detection_record: MakeRecord, of_detections: Tracked, order: list[int]
) -> None:
    rule = PresenceRule(confirm_frames=5, window_frames=5)
    assert len(found(rule, [of_detections(detection_record(seq, "pistol")) for seq in order])) == 1


def test_a_frame_later_than_the_whole_window_confirms_nothing(
    detection_record: MakeRecord, of_detections: Tracked
) -> None:
    rule = PresenceRule(confirm_frames=1, window_frames=2)
    records = [detection_record(5), detection_record(6), detection_record(1, "pistol")]
    assert found(rule, map(of_detections, records)) == []


def test_labels_are_confirmed_each_for_itself(detection_record: MakeRecord, of_detections: Tracked) -> None:
    rule = PresenceRule(confirm_frames=2, window_frames=2)
    records = [detection_record(0, "a"), detection_record(1, "a", "b"), detection_record(2, "a", "b")]
    assert found(rule, map(of_detections, records)) == [(1, "a"), (2, "a"), (2, "b")]


def test_tracks_are_confirmed_each_for_itself(tracked: Callable[..., TrackedFrame]) -> None:
    rule = PresenceRule(confirm_frames=2, window_frames=2, by="track")
    state = PresenceState()
    keys = [
        [one.key for one in KINDS["presence"].step(rule, state, frame, SCENE)]
        for frame in (tracked(0, (7, 0.1, 0.5)), tracked(1, (8, 0.1, 0.5)), tracked(2, (8, 0.1, 0.5), (9, 0.5, 0.5)))
    ]
    assert keys == [[], [], ["track 8"]]


def test_frames_of_two_runs_of_a_camera_do_not_confirm_each_other(
    detection_record: MakeRecord, of_detections: Tracked
) -> None:
    rule = PresenceRule(confirm_frames=2, window_frames=5)
    records = [detection_record(0, "a"), detection_record(1, "a", session="s2"), detection_record(2, "a", session="s2")]
    assert found(rule, map(of_detections, records)) == [(2, "a")]


@pytest.mark.parametrize(
    ("score", "box", "counts"),
    [
        (0.5, (0.0, 0.0, 10.0, 20.0), True),
        (0.49, (0.0, 0.0, 10.0, 20.0), False),
        (0.9, (0.0, 0.0, 9.9, 20.0), False),
        (math.nan, (0.0, 0.0, 10.0, 20.0), False),
        (math.inf, (0.0, 0.0, 10.0, 20.0), False),
        (0.9, (0.0, math.nan, 10.0, 20.0), False),
        (0.9, (0.0, 0.0, math.inf, 20.0), False),
        (0.9, (30.0, 30.0, 10.0, 10.0), False),
    ],
)
def test_what_counts_as_a_match(
    detection_record: MakeRecord,
    of_detections: Tracked,
    score: float,
    box: tuple[float, float, float, float],
    counts: bool,
) -> None:
    rule = PresenceRule(confirm_frames=1, window_frames=1, min_score=0.5, min_box_px=10)
    record = detection_record(0, detections=[Detection("a", 0, score, box)])
    assert bool(found(rule, [of_detections(record)])) == counts


def test_the_best_box_of_the_label_comes_first(detection_record: MakeRecord, of_detections: Tracked) -> None:
    boxes = [Detection("a", 0, score, (0.0, 0.0, 10.0, 10.0)) for score in (0.6, 0.8, 0.7)]
    rule = PresenceRule(confirm_frames=1, window_frames=1)
    frame = of_detections(detection_record(0, detections=boxes))
    finding: Finding
    (finding,) = KINDS["presence"].step(rule, PresenceState(), frame, SCENE)
    assert [one.score for one in finding.objects] == [0.8, 0.7, 0.6]
    assert (finding.key, finding.frames_matched, finding.frames_seen) == ("label a", 1, 1)
