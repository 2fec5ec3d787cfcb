"""Many cameras in one process: some dead, some frozen, some hung; the others must not notice."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.fleet import Fleet
from ingest.frames import Picture
from ingest.reader import open_reader
from ingest.settings import CameraSettings, IngestSettings
from ingest.sources import Source, parse


@pytest.fixture
def run_fleet(link: Any) -> Iterator[Callable[..., Fleet]]:
    fleets: list[Fleet] = []

    def start(cameras: dict[str, Any], settings: IngestSettings | None = None, **options: Any) -> Fleet:
        cameras = {
            name: CameraSettings.model_validate({"source": each} if isinstance(each, str) else each)
            for name, each in cameras.items()
        }
        fleet = Fleet(cameras, link, settings or IngestSettings(), **options)
        fleet.start()
        fleets.append(fleet)
        return fleet

    yield start
    for fleet in fleets:
        begun_s = time.monotonic()
        fleet.stop()
        assert time.monotonic() - begun_s < 5


@pytest.fixture
def clip(tmp_path: Path, write_clip: Callable[..., Path]) -> Path:
    return write_clip(
        tmp_path / "street.mp4", frames=50, width=160, height=96, options={"g": "25", "preset": "ultrafast"}
    )


def rate(link: Any, name: str, seconds: float) -> float:
    """Frames a second that arrived in the last seconds."""
    since_s = time.monotonic() - seconds
    return sum(at > since_s for at in link.arrived_s[name]) / seconds


def test_eight_cameras_one_dead_one_flapping_one_frozen(
    link: Any, run_fleet: Callable[..., Fleet], serve_rtsp: Callable[..., Any], clip: Path, until: Any
) -> None:
    servers = {f"cam{n}": serve_rtsp(clip) for n in range(7)}
    dead = serve_rtsp(clip)
    dead.faults.down()  # from the start
    cameras: dict[str, Any] = {name: {"source": server.url, "read_timeout_s": 1} for name, server in servers.items()}
    cameras["dead"] = dead.url
    fleet = run_fleet(cameras)
    healthy = [f"cam{n}" for n in range(5)]
    until(lambda: all(len(link.frames[name]) > 10 for name in servers), 15, "all seven stream")

    servers["cam5"].faults.flap(1.5)
    servers["cam6"].faults.stall()
    time.sleep(4.5)  # the time over which the rates are measured
    for name in healthy:
        assert rate(link, name, 4) >= 23, f"{name} fell to {rate(link, name, 4)} fps"
    states = {each.camera: each for each in fleet.snapshots()}
    assert states["cam6"].errors.get("frozen", 0) >= 1
    assert sum(states["cam5"].errors.values()) >= 1
    assert states["dead"].state in {"backing_off", "connecting"} and states["dead"].errors["refused"] >= 2
    assert {states[name].state for name in healthy} == {"streaming"}
    assert {states[name].reconnects for name in healthy} == {0}

    returned_s = time.monotonic()
    dead.faults.up()
    until(lambda: link.frames["dead"], 5, "the dead camera came")
    assert link.arrived_s["dead"][0] - returned_s < 2
    for port in link.ports.values():
        assert port.ledger.snapshot().balanced


def test_a_restarted_server_is_back_within_two_seconds_after_a_long_outage(
    link: Any, run_fleet: Callable[..., Fleet], serve_rtsp: Callable[..., Any], clip: Path, until: Any
) -> None:
    server = serve_rtsp(clip)
    fleet = run_fleet({"c": server.url})
    until(lambda: len(link.frames["c"]) > 5)
    for outage_s in (0.2, 4.0):
        server.faults.down()
        time.sleep(outage_s)
        before, returned_s = len(link.frames["c"]), time.monotonic()
        server.faults.up()
        until(lambda before=before: len(link.frames["c"]) > before, 5, "camera back")
        assert time.monotonic() - returned_s < 2
    assert fleet.snapshots()[0].reconnects >= 2


def test_a_hanging_server_is_left_and_found_again(
    link: Any, run_fleet: Callable[..., Fleet], serve_rtsp: Callable[..., Any], clip: Path, until: Any
) -> None:
    server = serve_rtsp(clip)
    fleet = run_fleet({"c": {"source": server.url, "read_timeout_s": 1, "open_timeout_s": 1}})
    until(lambda: len(link.frames["c"]) > 5)
    server.faults.hang()
    until(lambda: fleet.snapshots()[0].errors.get("frozen"), 5, "seen as frozen")
    until(lambda: fleet.snapshots()[0].errors.get("timeout"), 5, "new attempts time out")
    before = len(link.frames["c"])
    server.faults.resume()
    until(lambda: len(link.frames["c"]) > before, 5, "camera back")


def test_udp_carries_frames_too(
    link: Any, run_fleet: Callable[..., Fleet], serve_rtsp: Callable[..., Any], clip: Path, until: Any
) -> None:
    run_fleet({"c": {"source": serve_rtsp(clip).url, "rtsp_transport": "udp"}})
    until(lambda: len(link.frames["c"]) > 30)


def test_damaged_packets_cost_frames_and_not_the_camera(
    link: Any, run_fleet: Callable[..., Fleet], serve_rtsp: Callable[..., Any], clip: Path, until: Any
) -> None:
    server = serve_rtsp(clip)
    fleet = run_fleet({"c": server.url})
    until(lambda: len(link.frames["c"]) > 5)
    server.faults.corrupt(0.5)
    until(lambda: server.stats.packets_corrupted > 20)
    server.faults.clear()
    before = len(link.frames["c"])
    until(lambda: len(link.frames["c"]) > before + 15)
    camera = fleet.snapshots()[0]
    assert camera.concealed + link.ports["c"].ledger.snapshot().dropped.get("decode_error", 0) > 0


def test_live_event_time_follows_the_wall_clock(
    link: Any, run_fleet: Callable[..., Fleet], serve_rtsp: Callable[..., Any], clip: Path, until: Any
) -> None:
    run_fleet({"c": serve_rtsp(clip).url})
    until(lambda: len(link.frames["c"]) > 40)
    for frame, arrived_s in zip(link.frames["c"], link.arrived_s["c"], strict=True):
        arrived_us = (arrived_s + time.time() - time.monotonic()) * 1e6
        assert abs(frame.event_us - arrived_us) < 500_000


def test_no_password_reaches_logs_or_snapshots(
    link: Any,
    run_fleet: Callable[..., Fleet],
    serve_rtsp: Callable[..., Any],
    clip: Path,
    until: Any,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve_rtsp(clip)
    server.faults.answer(401)
    with_password = server.url.replace("rtsp://", "rtsp://admin:Zq7x%40secret@") + "?token=Zq7xtoken"
    refused = "http://admin:Zq7xother@127.0.0.1:1/video"
    fleet = run_fleet({"a": with_password, "b": refused, "c": "/nowhere/at/all.mp4"})
    until(lambda: all(each.errors for each in fleet.snapshots()))
    out = capfd.readouterr()
    seen = out.out + out.err + caplog.text + repr(fleet.snapshots())
    assert "Zq7x" not in seen
    assert "auth_failed" in seen and "refused" in seen


class Hung:
    """A reader that never comes back, as one on a dead network file system."""

    nominal_s, concealed, defect = 0.04, 0, None

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def deliveries(self) -> Iterator[Picture]:
        self._wake.wait()
        yield from ()

    def close(self) -> None:
        pass


@pytest.fixture
def hang_often() -> Iterator[Callable[[int], Any]]:
    """An `open_reader` whose first n readers hang until the test ends."""
    wake = threading.Event()

    def make(times: int) -> Any:
        opened = []

        def opens(settings: CameraSettings, max_pixels: int, wanted: Any, wakefulness: Any) -> tuple[Source, Any]:
            opened.append(settings)
            if len(opened) <= times:
                return parse(settings.source, settings.live), Hung(wake)
            return open_reader(settings, max_pixels, wanted, wakefulness)

        return opens

    yield make
    wake.set()


QUICK = {"open_timeout_s": 0.2, "read_timeout_s": 0.2}


def test_a_hung_reader_is_replaced(
    link: Any,
    run_fleet: Callable[..., Fleet],
    serve_rtsp: Callable[..., Any],
    clip: Path,
    until: Any,
    hang_often: Callable[[int], Any],
) -> None:
    camera = {"source": serve_rtsp(clip).url, "open_timeout_s": 0.3, "read_timeout_s": 0.3}
    fleet = run_fleet({"c": camera}, IngestSettings(watchdog_s=1), open_reader=hang_often(1))
    until(lambda: len(link.frames["c"]) > 5, 6, "the second reader delivers")
    snapshot = fleet.snapshots()[0]
    assert snapshot.abandoned == 1 and snapshot.errors["hung"] == 1
    assert fleet.fatal is None


def test_too_many_hung_readers_are_fatal_to_the_process(
    run_fleet: Callable[..., Fleet], until: Any, hang_often: Callable[[int], Any]
) -> None:
    settings = IngestSettings(watchdog_s=1, max_abandoned=1, stop_timeout_s=1)
    fleet = run_fleet({"c": {"source": "rtsp://cam/x", **QUICK}}, settings, open_reader=hang_often(99))
    until(lambda: fleet.fatal, 6, "fatal")
    assert "max_abandoned" in str(fleet.fatal)


def test_hung_readers_that_have_ended_do_not_count_for_ever(
    link: Any,
    run_fleet: Callable[..., Fleet],
    serve_rtsp: Callable[..., Any],
    clip: Path,
    until: Any,
) -> None:
    opened = itertools.count()
    abandoned: list[threading.Event] = []

    def opens(*arguments: Any) -> Any:
        if next(opened) < 3:  # hangs until its successor is asked for
            wake = threading.Event()
            for before in abandoned:
                before.set()
            abandoned.append(wake)
            wake.wait(20)
        return open_reader(*arguments)

    camera = {"source": serve_rtsp(clip).url, "open_timeout_s": 0.3, "read_timeout_s": 0.3}
    fleet = run_fleet({"c": camera}, IngestSettings(watchdog_s=1, max_abandoned=1), open_reader=opens)
    until(lambda: len(link.frames["c"]) > 5 or fleet.fatal, 20, "the fourth reader delivers")
    for wake in abandoned:
        wake.set()
    assert fleet.fatal is None
    assert fleet.snapshots()[0].abandoned == 3


def test_a_hung_file_fails_and_is_not_read_again(
    run_fleet: Callable[..., Fleet], clip: Path, until: Any, hang_often: Callable[[int], Any]
) -> None:
    settings = IngestSettings(watchdog_s=1)
    fleet = run_fleet({"c": {"source": str(clip), **QUICK}}, settings, open_reader=hang_often(1))
    until(lambda: fleet.finished, 6, "given up")
    assert (fleet.snapshots()[0].state, fleet.snapshots()[0].error) == ("failed", "hung")


def test_a_disabled_camera_is_not_read(run_fleet: Callable[..., Fleet]) -> None:
    fleet = run_fleet({"c": {"source": "rtsp://127.0.0.1:1/x", "enabled": False}})
    assert fleet.snapshots() == [] and fleet.finished
