"""Objects keep their ids: through crossings, gaps, restarts and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.tracking import Tracker, TrackerSettings, TrackerState
from sink.tracking import tracker as tracker_module
from sink.tracks import TrackedFrame
from wire.messages import Detection, DetectionRecord

START_US = 1_700_000_000_000_000
Box = tuple[float, float, float, float]
MakeRecord = Callable[..., DetectionRecord]


def seen(
    label: str, x: float, y: float = 300, *, score: float = 0.9, width: float = 60, height: float = 150
) -> Detection:
    return Detection(label, 0, score, (x, y, x + width, y + height))


class Camera:
    """Feeds a tracker with frames of one camera."""

    def __init__(self, make: MakeRecord, settings: TrackerSettings | None = None) -> None:
        self.make = make
        self.tracker = Tracker(settings or TrackerSettings())
        self.seq, self.now_us, self.session = -1, START_US, "s1"

    def frame(self, *detections: Detection, after_s: float = 0.04) -> TrackedFrame:
        self.seq += 1
        self.now_us += round(after_s * 1e6)
        record = self.make(
            self.seq, event_us=self.now_us, session=self.session, detections=list(detections), order=self.seq
        )
        return self.tracker.step(record)

    def stand(self, detection: Detection, seconds: float, after_s: float = 0.04) -> TrackedFrame:
        frames = [self.frame(detection, after_s=after_s) for _ in range(round(seconds / after_s))]
        return frames[-1]


@pytest.fixture
def camera(detection_record: MakeRecord) -> Camera:
    return Camera(detection_record)


def ids(frame: TrackedFrame) -> list[int]:
    return [track.id for track in frame.tracks]


def test_two_who_cross_keep_their_ids(camera: Camera) -> None:
    frames = []
    for index in range(100):
        right, left = seen("person", 100 + 5 * index), seen("person", 600 - 5 * index, 310)
        hidden = 45 <= index <= 52  # the one behind
        frames.append(camera.frame(right, *([] if hidden else [left])))
    assert ids(frames[1]) == [1, 2]
    last = {track.id: track for track in frames[-1].tracks}
    assert last[1].box[0] == 595 and last[2].box[0] == 105
    assert last[1].velocity == (pytest.approx(125, rel=0.05), pytest.approx(0, abs=2))
    assert last[2].velocity[0] == pytest.approx(-125, rel=0.05)
    assert last[1].hits == 100 and last[2].hits == 92
    assert last[1].first_us == START_US + 40_000


@pytest.mark.parametrize("fps", [2.5, 5, 10, 25])
def test_a_walker_is_followed_at_any_usual_rate(camera: Camera, fps: float) -> None:
    # 1.4 m/s at 1.7 m for 150 px: a whole width of the box in half a second.
    frames = [camera.frame(seen("person", 100 + 124 * i / fps), after_s=1 / fps) for i in range(20)]
    assert {tuple(ids(frame)) for frame in frames[1:]} == {(1,)}


def test_out_of_sight_for_a_second_keeps_the_id_for_long_does_not(camera: Camera) -> None:
    for index in range(25):
        camera.frame(seen("person", 100 + 4 * index))
    for _ in range(25):
        assert camera.frame().tracks == ()
    assert ids(camera.frame(seen("person", 304))) == [1]
    ended = [one for _ in range(75) for one in camera.frame().ended]
    assert ended == [1]
    camera.frame(seen("person", 304))
    assert ids(camera.frame(seen("person", 304))) == [2]


def test_one_false_box_is_no_object_and_an_unsure_one_begins_none(camera: Camera) -> None:
    assert camera.frame(seen("person", 100)).tracks == ()
    assert camera.frame().tracks == ()
    frames = [camera.frame(seen("person", 100, score=0.2)) for _ in range(10)]
    assert not any(frame.tracks or frame.ended for frame in frames)
    assert camera.tracker.state.tracks == []


def test_unsure_boxes_keep_a_track_alive(camera: Camera) -> None:
    camera.stand(seen("person", 100), 0.2)
    frame = camera.stand(seen("person", 100, score=0.15), 5)
    assert ids(frame) == [1]
    assert frame.tracks[0].score == 0.15


def test_classes_do_not_mix(camera: Camera) -> None:
    for _ in range(5):
        frame = camera.frame(seen("person", 100, score=0.8), seen("car", 100))
    assert [(track.id, track.label) for track in frame.tracks] == [(2, "car"), (1, "person")]
    for _ in range(5):
        frame = camera.frame(seen("car", 100))
    assert [(track.id, track.label) for track in frame.tracks] == [(2, "car")]


def test_a_class_that_flickers_keeps_its_track_and_one_that_changes_becomes_the_tracks(camera: Camera) -> None:
    frames = [camera.frame(seen("dog" if index % 5 == 4 else "cat", 100 + 3 * index)) for index in range(50)]
    assert {(track.id, track.label) for frame in frames for track in frame.tracks} == {(1, "cat")}
    assert all(frame.tracks for frame in frames[1:])
    frames = [camera.frame(seen("dog", 250)) for _ in range(20)]
    assert [track.label for frame in frames for track in frame.tracks] == ["cat"] * 9 + ["dog"] * 11
    assert {track.id for frame in frames for track in frame.tracks} == {1}


def test_a_rider_does_not_become_the_bicycle(camera: Camera) -> None:
    for index in range(20):
        bicycle, rider = seen("bicycle", 100 + index, 360, height=90), seen("person", 100 + index)
        frame = camera.frame(*([bicycle] if index % 4 else []), rider)
    assert {(track.id, track.label) for track in frame.tracks} <= {
        (1, "person"),
        (2, "bicycle"),
        (2, "person"),
        (1, "bicycle"),
    }
    assert len({track.label for track in camera.tracker.state.tracks}) == 2


def test_standing_still_is_timed_and_moving_is_not(camera: Camera) -> None:
    assert camera.stand(seen("car", 500), 2.5).tracks[0].still_us == 0
    assert camera.stand(seen("car", 500), 7.5).tracks[0].still_us == 9_960_000
    moving = [camera.frame(seen("car", 500 + 2 * index)) for index in range(100)]
    assert {track.still_us for frame in moving[50:] for track in frame.tracks} == {0}
    assert {tuple(ids(frame)) for frame in moving} == {(1,)}


def test_a_bad_box_does_not_end_the_rest_but_creeping_does(camera: Camera) -> None:
    camera.stand(seen("car", 500, width=200), 5)
    camera.stand(seen("car", 500, width=90), 0.2)  # something passes in front
    assert camera.stand(seen("car", 500, width=200), 1).tracks[0].still_us > 6_000_000
    creeping = [camera.frame(seen("car", 500 + 0.5 * index, width=200)) for index in range(250)]
    assert {track.still_us for frame in creeping[100:] for track in frame.tracks} == {0}


def test_a_parked_car_is_the_same_after_an_hour_without_frames_a_walker_is_not(camera: Camera) -> None:
    for index in range(125):
        before = camera.frame(seen("car", 800, width=200), seen("person", 100 + 2 * index))
    assert ids(before) == [1, 2]
    after = camera.frame(seen("car", 803, width=200), seen("person", 350), after_s=3600)
    assert ids(after) == [1] and after.ended == (2,)
    assert after.tracks[0].still_us > 3600e6


def test_what_stood_still_may_be_hidden_for_longer(camera: Camera) -> None:
    camera.stand(seen("car", 800, width=200), 5)
    for _ in range(20 * 25):
        camera.frame()
    after = camera.frame(seen("car", 800, width=200))
    assert ids(after) == [1] and after.tracks[0].still_us > 20e6
    ended = [one for _ in range(31 * 25) for one in camera.frame().ended]
    assert ended == [1]


def test_few_frames_a_minute_still_show_what_stays(camera: Camera) -> None:
    frame = camera.stand(seen("person", 100), 40, after_s=4)
    assert ids(frame) == [1]


def test_a_late_frame_has_no_tracks_and_changes_nothing(camera: Camera) -> None:
    camera.stand(seen("person", 100), 1)
    before = msgspec.msgpack.encode(camera.tracker.state)
    late = camera.make(3, event_us=START_US + 1, detections=[seen("person", 900)])
    assert camera.tracker.step(late) == TrackedFrame(late, ())
    assert msgspec.msgpack.encode(camera.tracker.state) == before
    assert camera.tracker.counts.late_frames == 1


def test_a_clock_that_is_set_back_takes_the_tracks_with_it(camera: Camera) -> None:
    camera.stand(seen("car", 100), 10)
    back = camera.frame(seen("car", 100), after_s=-3600)
    assert ids(back) == [1]
    assert back.tracks[0].still_us == pytest.approx(9.96e6)
    assert back.tracks[0].first_us == camera.now_us - 9_960_000
    assert camera.tracker.counts.clock_steps == 1
    assert ids(camera.stand(seen("car", 100), 1)) == [1]


def test_a_new_session_goes_on_unless_it_begins_earlier(camera: Camera) -> None:
    camera.stand(seen("car", 100), 10)
    camera.session, camera.seq = "s2", -1
    assert ids(camera.frame(seen("car", 100), after_s=60)) == [1]
    camera.session, camera.seq = "s3", -1
    again = camera.frame(seen("car", 100), after_s=-30)
    assert (again.tracks, again.ended) == ((), (1,))
    assert ids(camera.frame(seen("car", 100))) == [2]


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-200, 2000)
detections = st.builds(
    Detection,
    label=st.sampled_from(["person", "car"]),
    class_id=st.just(0),
    score=st.floats(0, 1) | numbers,
    box=st.tuples(numbers, numbers, numbers, numbers)
    | st.builds(lambda x, y: (x, y, x + 80.0, y + 160.0), st.floats(0, 300), st.floats(0, 300)),
)
# Steps between frames: usual, none, a gap, and back.
steps_s = st.sampled_from([0.04, 0.04, 0.2, 0.0, 3.0, 4000.0, -0.1, -50.0])


@given(st.lists(st.tuples(st.lists(detections, max_size=6), steps_s, st.integers(0, 3)), max_size=30), st.data())
def test_whatever_comes_a_restart_changes_nothing_and_ids_are_never_given_twice(
    detection_record: MakeRecord, frames: list[tuple[list[Detection], float, int]], data: st.DataObject
) -> None:
    restart_at = data.draw(st.integers(0, len(frames)))
    whole, parted = Tracker(TrackerSettings()), Tracker(TrackerSettings())
    event_us, over = START_US, set[int]()
    for index, (boxes, step_s, session) in enumerate(frames):
        event_us += round(step_s * 1e6)
        record = detection_record(index, event_us=event_us, session=f"s{session // 3}", detections=boxes)
        if index == restart_at:
            kept = msgspec.msgpack.decode(msgspec.msgpack.encode(parted.state), type=TrackerState)
            parted = Tracker(TrackerSettings(), kept)
        one, other = whole.step(record), parted.step(record)
        assert msgspec.msgpack.encode((one.tracks, one.ended)) == msgspec.msgpack.encode((other.tracks, other.ended))
        assert not over & {*ids(one), *one.ended}
        assert len(set(ids(one))) == len(ids(one))
        over.update(one.ended)
        for track in one.tracks:
            assert all(map(math.isfinite, (*track.box, *track.velocity, track.score)))
            assert track.first_us <= event_us and track.still_us >= 0


def test_boxes_that_are_none_are_left_out_and_counted(camera: Camera) -> None:
    nan = math.nan
    bad = [
        Detection("person", 0, 0.9, (nan, 0, 50, 50)),
        Detection("person", 0, nan, (0, 0, 50, 50)),
        Detection("person", 0, 0.9, (0, 0, math.inf, 50)),
        Detection("person", 0, 0.9, (50, 0, 50, 50)),
        Detection("person", 0, 0.9, (0, 50, 50, 0)),
        Detection("person", 0, 0.9, (0, 0, 1e300, 1e300)),
    ]
    good = seen("person", 100)
    camera.frame(good, *bad)
    frame = camera.frame(*bad, good)
    assert ids(frame) == [1] and frame.record.detections == [good]
    assert camera.tracker.counts.bad_boxes == 12


def test_a_flood_of_boxes_is_cut(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MAX_TRACKS", 10)
    many: Sequence[Detection] = [seen("person", 100 * index, score=0.5 + index / 100) for index in range(15)]
    camera.frame(*many)
    assert len(camera.frame(*many).tracks) == 10
    elsewhere = [seen("person", 100 * index, 900) for index in range(5)]
    assert len(camera.frame(*elsewhere).ended) == 5
    assert len(camera.tracker.state.tracks) == 10
    assert camera.tracker.counts.over_limit == 15
