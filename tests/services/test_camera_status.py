"""Incidents about cameras, caused for real: real ingest, real camera faults, a real sink on a real Valkey."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import structlog

from ingest.sim.launch import launch
from services import ingest
from services.camera_status import ALONE_AFTER, SHARED_AFTER, StatusWriter
from services.config import Config
from sink.camera import Plan
from sink.incident_settings import IncidentSettings, SystemSettings
from sink.settings import SinkSettings
from sink.sink import Sink
from wire.alerts import ALERTS, Alert, from_json
from wire.cameras import CameraStatus, read_status, status_of, write_status
from wire.health import Health
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

WaitUntil = Callable[..., None]

PLAN = Plan(
    incidents=IncidentSettings(
        system=SystemSettings(camera_down_s=1, ingest_silent_s=3, detector_slow_s=2, merge_s=1, cooldown_s=0)
    )
)


class Threads:
    """Things that run until the test is over."""

    def __init__(self) -> None:
        self._running: list[tuple[threading.Event, threading.Thread]] = []

    def start(self, run: Callable[[threading.Event], object]) -> Callable[[], None]:
        stop = threading.Event()
        thread = threading.Thread(target=run, args=(stop,))
        thread.start()
        self._running.append((stop, thread))

        def end() -> None:
            stop.set()
            thread.join(10)

        return end

    def end(self) -> None:
        for stop, _ in self._running:
            stop.set()
        for _, thread in self._running:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.end()


def start_ingest(
    threads: Threads, folder: Path, url: str, source: str, health: Health | None = None
) -> Callable[[], None]:
    camera = {"source": source, "read_timeout_s": 0.5, "open_timeout_s": 0.5}
    config = Config.model_validate(
        {
            "runtime_dir": folder / "rt",
            "cameras": {"door": camera},
            "redis": {"url": url},
            "metrics": {"enabled": False},
        }
    )
    (folder / "rt").mkdir(parents=True)
    return threads.start(lambda stop: ingest.run(config, stop, health or Health(None, "ingest")))


def start_sink(threads: Threads, url: str) -> Callable[[], None]:
    sink = Sink(SinkSettings(), PLAN, ["door"], RedisSettings(url=url))
    return threads.start(sink.run)


def told(url: str) -> list[tuple[str, str]]:
    """(rule, event) of every alert."""
    return [(alert.rule, alert.event) for alert in alerts(url)]


def alerts(url: str) -> list[Alert]:
    with redis.Redis.from_url(url) as client:
        return [from_json(fields[b"d"]) for _, fields in client.xrange(ALERTS)]


def test_a_camera_that_refuses_is_down_and_a_stop_on_purpose_ends_that(
    valkey: EmbeddedValkey, threads: Threads, tmp_path: Path, wait_until: WaitUntil
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        start_sink(threads, valkey.url)
        source = f"rtsp://user:s3cret@127.0.0.1:{nobody.getsockname()[1]}/camera"
        stop = start_ingest(threads, tmp_path, valkey.url, source)
        wait_until(lambda: told(valkey.url) == [("system.camera_down", "opened")], timeout_s=15)
        (down,) = alerts(valkey.url)
        assert down.detail["reason"] == "refused"
        assert "s3cret" not in down.text
        stop()
        wait_until(lambda: told(valkey.url)[1:] == [("system.camera_down", "closed")], timeout_s=15)


def test_a_stream_that_stalls_is_a_frozen_picture_until_it_goes_on(
    valkey: EmbeddedValkey, threads: Threads, tmp_path: Path, wait_until: WaitUntil
) -> None:
    camera = launch("sim://street?size=320x192&fps=10", faults=["stall@6+6"])  # time to connect on a busy machine
    try:
        start_sink(threads, valkey.url)
        start_ingest(threads, tmp_path, valkey.url, camera.rtsp_url)
        frozen = [("system.picture_frozen", "opened"), ("system.picture_frozen", "closed")]
        wait_until(lambda: [one for one in told(valkey.url) if "frozen" in one[0]] == frozen, timeout_s=60)
        # No detector runs here at all, and that is told too.
        wait_until(lambda: ("system.detector_slow", "opened") in told(valkey.url), timeout_s=15)
    finally:
        camera.close()


def leave_report(url: str, age_s: int) -> None:
    """All that a killed ingest leaves behind is a state that grows old."""
    with redis.Redis.from_url(url) as client:
        seconds, _ = client.time()
        old = {"v": 1, "state": "streaming", "up": 1, "error": "", "error_text": "", "wanted": 0, "detected": 0}
        times = dict.fromkeys(("written_us", "up_us", "detected_us"), (seconds - age_s) * 1_000_000)
        client.hset("sparsecam:camera:{door}", mapping={**old, **times})


def test_an_ingest_that_dies_is_a_camera_down_and_stays_so_over_a_restart_of_the_sink(
    valkey: EmbeddedValkey, threads: Threads, wait_until: WaitUntil
) -> None:
    leave_report(valkey.url, 0)
    stop = start_sink(threads, valkey.url)
    wait_until(lambda: told(valkey.url) == [("system.camera_down", "opened")], timeout_s=10)
    assert alerts(valkey.url)[0].detail["reason"] == "ingest_silent"
    stop()
    start_sink(threads, valkey.url)
    # Nobody has heard of the camera since: the next that is told is that it still lasts.
    wait_until(lambda: told(valkey.url)[1:] == [("system.camera_down", "updated")], timeout_s=20)


def test_a_report_of_the_last_run_is_no_camera_down_until_the_sink_has_listened(
    valkey: EmbeddedValkey, threads: Threads, wait_until: WaitUntil
) -> None:
    leave_report(valkey.url, 3600)
    start_sink(threads, valkey.url)
    wait_until(lambda: told(valkey.url) == [("system.camera_down", "opened")], timeout_s=10)
    # The silence that it tells of is the one that it waited for, and not that of the hour without a sink.
    assert alerts(valkey.url)[0].detail["silent_s"] in (3, 4)


def test_after_an_outage_of_redis_an_ingest_has_time_to_report(
    own_valkey: EmbeddedValkey, threads: Threads, wait_until: WaitUntil
) -> None:
    start_sink(threads, own_valkey.url)
    own_valkey.stop()
    own_valkey.start()
    leave_report(own_valkey.url, 3600)
    wait_until(lambda: told(own_valkey.url) == [("system.camera_down", "opened")], timeout_s=15)
    assert alerts(own_valkey.url)[0].detail["silent_s"] in (3, 4)


def test_states_are_written_again_after_redis_was_away(
    own_valkey: EmbeddedValkey, threads: Threads, tmp_path: Path, wait_until: WaitUntil
) -> None:
    start_ingest(threads, tmp_path, own_valkey.url, "rtsp://127.0.0.1:9/camera")

    def written_us() -> int:
        try:
            link = Link(connect(RedisSettings(url=own_valkey.url)))
        except OSError:
            return 0
        status = status_of(link.send(read_status("door"))[0])
        link.close()
        return status.written_us if status else 0

    wait_until(written_us, timeout_s=10)
    own_valkey.stop()
    own_valkey.start()
    restarted_us = written_us()
    wait_until(lambda: written_us() > restarted_us, timeout_s=10)


def test_two_ingests_with_a_camera_of_one_name_both_say_so_until_one_ends(
    valkey: EmbeddedValkey, threads: Threads, tmp_path: Path, wait_until: WaitUntil
) -> None:
    reports = {name: Health(None, "ingest") for name in ("one", "two")}
    stops = {
        name: start_ingest(threads, tmp_path / name, valkey.url, "rtsp://127.0.0.1:9/camera", health)
        for name, health in reports.items()
    }
    wait_until(lambda: all("door" in one.detail.get("cameras_shared", ()) for one in reports.values()), timeout_s=20)
    assert {one.state for one in reports.values()} == {"degraded"}
    stops["two"]()
    wait_until(lambda: "cameras_shared" not in reports["one"].detail, timeout_s=20)


def test_two_that_do_not_keep_their_second_are_told_apart_from_one_all_the_same() -> None:
    writer = StatusWriter(RedisSettings(), "", dict)
    with structlog.testing.capture_logs() as logs:
        for by_another in (True, False, True, False, False, True, True, False, True):
            writer._contest({"door": by_another})
        assert writer.shared == ["door"]
        for _ in range(ALONE_AFTER):
            writer._contest({"door": False})
    assert writer.shared == []
    assert len(logs) == 1


def test_an_ingest_that_was_started_again_is_not_two(valkey: EmbeddedValkey, threads: Threads, tmp_path: Path) -> None:
    link = Link(connect(RedisSettings(url=valkey.url)))
    status = CameraStatus("streaming", up=True)
    replies = [link.one(*write_status("door", status, writer)) for writer in ("before", "now", "now", "now")]
    assert replies == [0, 1, 0, 0]
    assert SHARED_AFTER > 1
    link.close()
