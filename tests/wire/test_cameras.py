"""How cameras are doing: written by ingest, read by sinks, in the server's time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wire.cameras import CameraStatus, read_status, status_of, write_status
from wire.messages import WireError
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey


@pytest.fixture
def link(valkey: EmbeddedValkey) -> Iterator[Link]:
    link = Link(connect(RedisSettings(), valkey.url))
    yield link
    link.close()


def written(link: Link, **fields: object) -> CameraStatus:
    status = CameraStatus(**{"state": "streaming", "up": True, **fields})  # type: ignore[arg-type]
    reply, read = link.send(write_status("door", status, "ingest"), read_status("door"))
    assert not isinstance(reply, Exception), reply
    found = status_of(read)
    assert found is not None
    return found


def test_what_is_written_is_read(link: Link) -> None:
    status = written(link, state="backing_off", up=False, error="refused", error_text="nothing there", wanted=3)
    assert (status.state, status.up, status.error, status.error_text) == (
        "backing_off",
        False,
        "refused",
        "nothing there",
    )
    assert status.wanted == 3


@pytest.mark.parametrize("live", [True, False])
def test_a_file_is_told_from_a_live_camera_and_an_older_report_is_read_as_of_one(link: Link, live: bool) -> None:
    assert written(link, live=live).live == live
    reply = link.send(read_status("door"))[0]
    at = reply.index(b"live")
    older = status_of([*reply[:at], *reply[at + 2 :]])
    assert older is not None
    assert older.live


def test_the_time_it_was_last_up_stands_still_while_it_is_down(link: Link) -> None:
    up = written(link)
    assert up.up_us == up.written_us > 1_600_000_000_000_000
    down = written(link, up=False, state="backing_off")
    assert down.up_us == up.up_us < down.written_us
    back = written(link)
    assert back.up_us == back.written_us


def test_frames_are_owed_only_while_more_are_wanted_and_none_detected(link: Link) -> None:
    begin = written(link, wanted=5, detected=5)
    quiet = written(link, wanted=5, detected=5)
    assert quiet.detected_us == quiet.written_us > begin.detected_us
    owed = written(link, wanted=6, detected=5)
    assert owed.detected_us == quiet.detected_us
    still_owed = written(link, wanted=7, detected=5)
    assert still_owed.detected_us == quiet.detected_us
    answered = written(link, wanted=8, detected=6)
    assert answered.detected_us == answered.written_us


def test_no_camera_is_none_and_rubbish_says_so(link: Link) -> None:
    assert status_of(link.send(read_status("nobody"))[0]) is None
    with pytest.raises(WireError, match="camera status"):
        status_of([b"v", b"1", b"state", b"streaming"])
