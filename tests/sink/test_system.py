"""What the system says of itself: down, frozen, slow; each when it lasts, and not at a hiccup."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sink.incident_settings import SystemSettings
from sink.system import CAMERA_DOWN, DETECTOR_SLOW, PICTURE_FROZEN, SystemState, SystemWatch
from wire.cameras import CameraStatus
from wire.messages import DetectionRecord

MakeRecord = Callable[..., DetectionRecord]

NOW_US = 1_800_000_000_000_000
SETTINGS = SystemSettings.model_validate({})


def status(**fields: object) -> CameraStatus:
    known: dict[str, object] = {
        "state": "streaming",
        "up": True,
        "written_us": NOW_US,
        "up_us": NOW_US,
        "detected_us": NOW_US,
    }
    return CameraStatus(**{**known, **fields})  # type: ignore[arg-type]


def found(watch: SystemWatch, one: CameraStatus | None, now_us: int = NOW_US) -> list[str]:
    return [rule for rule, _ in watch.findings(now_us, one)]


def seconds(value: float) -> int:
    return int(value * 1e6)


@pytest.mark.parametrize(
    ("camera", "rules"),
    [
        (status(), []),
        (None, []),
        (status(state="backing_off", up=False, up_us=NOW_US - seconds(14)), []),
        (status(state="backing_off", up=False, up_us=NOW_US - seconds(15)), [CAMERA_DOWN]),
        (status(state="frozen", error="frozen", up=False, up_us=NOW_US - seconds(15)), [PICTURE_FROZEN]),
        (status(state="connecting", error="frozen", up=False, up_us=NOW_US - seconds(15)), [PICTURE_FROZEN]),
        (status(same_s=119), []),
        (status(same_s=120), [PICTURE_FROZEN]),
        (status(state="backing_off", up=False, up_us=NOW_US - seconds(14), same_s=300), []),
        (status(written_us=NOW_US - seconds(11), same_s=300), [CAMERA_DOWN]),
        (status(written_us=NOW_US - seconds(11)), [CAMERA_DOWN]),
        (status(state="stopped", up=False, written_us=NOW_US - seconds(1000), up_us=0), []),
        (status(detected_us=NOW_US - seconds(30)), [DETECTOR_SLOW]),
        (status(state="backing_off", up=False, up_us=0, detected_us=0), [CAMERA_DOWN]),
    ],
)
def test_each_trouble_has_its_incident(camera: CameraStatus | None, rules: list[str]) -> None:
    assert found(SystemWatch(SETTINGS, SystemState()), camera) == rules


def test_detectors_slower_than_promised_for_a_while_are_an_incident(detection_record: MakeRecord) -> None:
    watch = SystemWatch(SETTINGS, SystemState())

    def see(begin: int, end: int, took_ms: int) -> None:
        for seq in range(begin, end):
            record = detection_record(seq)
            late_ns = record.captured_ns + took_ms * 1_000_000
            watch.observe(detection_record(seq, inference_end_ns=late_ns))

    see(0, 100, 50)
    assert found(watch, status()) == []
    see(100, 105, 3000)  # half a second is a hiccup
    assert found(watch, status()) == []
    assert watch.state.slow_since_us == 0
    see(105, 400, 3000)
    assert found(watch, status()) == []  # not for long yet
    later_us = NOW_US + seconds(30)
    see(400, 401, 3000)
    now = status(written_us=later_us, up_us=later_us, detected_us=later_us)
    assert found(watch, now, later_us) == [DETECTOR_SLOW]
    see(401, 801, 50)
    assert found(watch, now, later_us) == []
    assert watch.state.slow_since_us == 0


class TestWhenNoMoreFramesCome:
    """A minute of slow detections, and then no more of them."""

    @staticmethod
    def slow(detection_record: MakeRecord, **fields: object) -> tuple[SystemWatch, list[list[str]]]:
        watch, told = SystemWatch(SETTINGS, SystemState()), []
        for second in range(60):
            for seq in range(second * 10, second * 10 + 10):
                captured_ns = detection_record(seq).captured_ns
                watch.observe(detection_record(seq, inference_end_ns=captured_ns + 1_300_000_000))
            now_us = NOW_US + seconds(second)
            one = status(written_us=now_us, up_us=now_us, detected_us=now_us, **fields)
            told.append(found(watch, one, now_us))
        return watch, told

    def test_a_file_that_waits_for_its_turn_is_not_slow(self, detection_record: MakeRecord) -> None:
        _, told = self.slow(detection_record, live=False)
        assert not any(told)

    @pytest.mark.parametrize("state", ["ended", "failed", "stopped"])
    def test_slowness_is_over_with_the_camera(self, detection_record: MakeRecord, state: str) -> None:
        watch, told = self.slow(detection_record)
        assert told[-1] == [DETECTOR_SLOW]
        now_us = NOW_US + seconds(61)
        assert found(watch, status(state=state, written_us=now_us, up_us=now_us, detected_us=now_us), now_us) == []
        assert watch.state.mean_ms == 0

    def test_slowness_lapses_when_nothing_is_heard_for_a_while(self, detection_record: MakeRecord) -> None:
        watch, _ = self.slow(detection_record)
        rules = []
        for second in range(60, 200):
            now_us = NOW_US + seconds(second)
            rules.append(found(watch, status(written_us=now_us, up_us=now_us, detected_us=now_us), now_us))
        assert [DETECTOR_SLOW] in rules[:60], "a keyframe now and then is enough to know that it goes on"
        assert not any(rules[61:])

    def test_one_slow_frame_is_not_slow_for_as_long_as_none_follows(self, detection_record: MakeRecord) -> None:
        watch = SystemWatch(SETTINGS, SystemState())
        watch.observe(detection_record(0, inference_end_ns=detection_record(0).captured_ns + 9_000_000_000))
        for second in range(200):
            now_us = NOW_US + seconds(second)
            assert found(watch, status(written_us=now_us, up_us=now_us, detected_us=now_us), now_us) == []


def test_a_pause_is_no_slowness(detection_record: MakeRecord) -> None:
    watch = SystemWatch(SETTINGS, SystemState())
    watch.observe(detection_record(0, inference_end_ns=detection_record(0).captured_ns + 9_000_000_000))
    watch.observe(detection_record(10_000))
    assert watch.state.mean_ms == 12.0


@pytest.mark.parametrize(
    ("listened_s", "rules"),
    [(0, []), (9.9, []), (10, [CAMERA_DOWN])],
)
def test_a_report_of_the_last_run_is_a_silence_only_once_it_was_listened_for_so_long(
    listened_s: float, rules: list[str]
) -> None:
    old = status(written_us=NOW_US - seconds(3600), up_us=NOW_US - seconds(3600))
    told = SystemWatch(SETTINGS, SystemState()).findings(NOW_US, old, NOW_US - seconds(listened_s))
    assert [rule for rule, _ in told] == rules


@pytest.mark.parametrize(("listened_s", "rules"), [(2, []), (15, [CAMERA_DOWN])])
def test_a_camera_that_connects_at_the_start_was_not_down_since_the_last_run(
    listened_s: float, rules: list[str]
) -> None:
    connecting = status(state="connecting", up=False, up_us=NOW_US - seconds(3600))
    told = SystemWatch(SETTINGS, SystemState()).findings(NOW_US, connecting, NOW_US - seconds(listened_s))
    assert [rule for rule, _ in told] == rules
