from __future__ import annotations

from ingest.errors import SourceError
from ingest.status import CameraStatus, Rate


class Clock:
    now_s = 1000.5

    def __call__(self) -> float:
        return self.now_s


def test_the_rate_is_that_of_the_last_whole_seconds() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert rate.per_s() == 0
    for _ in range(250):
        rate.add(1)
        clock.now_s += 0.04
    assert abs(rate.per_s() - 25) < 0.5
    clock.now_s += 2
    assert 10 < rate.per_s() < 20  # a stall shows
    clock.now_s += 10
    assert rate.per_s() == 0


def test_an_error_is_shown_until_frames_arrive_and_counted_for_good() -> None:
    status = CameraStatus("door", "rtsp://cam/x", live=True)
    status.failed(SourceError("refused", "rtsp://cam/x: connection refused"))
    status.failed(SourceError("hung", "rtsp://cam/x: no sign of life"))
    snapshot = status.snapshot()
    assert (snapshot.error, snapshot.errors, snapshot.abandoned) == ("hung", {"refused": 1, "hung": 1}, 1)
    status.streaming()
    snapshot = status.snapshot()
    assert (snapshot.state, snapshot.error, snapshot.error_text) == ("streaming", None, "")
    assert snapshot.errors == {"refused": 1, "hung": 1}


def test_frame_numbers_rise_and_never_repeat() -> None:
    status = CameraStatus("door", "x", live=False)
    assert [status.next_seq() for _ in range(3)] == [1, 2, 3]
