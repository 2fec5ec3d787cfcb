"""Each fault is caused on a real server and seen by FFmpeg's own client."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import av
import pytest

from ingest.sim.faults import KINDS, FaultSpec, FaultState, parse_fault, plan
from ingest.sim.file_source import FileSource
from ingest.sim.h264 import frame_index
from ingest.sim.rtsp_server import RtspServer
from ingest.sim.scene_source import SceneSource

Watch = Callable[..., list[av.VideoFrame]]


def eventually(holds: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "not so in time"
        time.sleep(0.01)


def can_watch(watch: Watch, url: str) -> bool:
    try:
        return len(watch(url, 1)) == 1
    except av.error.FFmpegError:
        return False


def test_stall_keeps_the_connection_and_stops_the_media_until_resume(street_source: SceneSource, opened: Any) -> None:
    with RtspServer(street_source) as server, opened(server.url) as container:
        frames = container.decode(video=0)
        next(frames)
        server.faults.stall()
        units = server.stats.units
        eventually(lambda: server.stats.units >= units + 10)  # the camera films on, unseen
        server.faults.resume()
        after = [next(frames) for _ in range(40)]
        indices = [frame_index(frame) or 0 for frame in after]
        gap = max(b - a for a, b in pairwise(indices))
        assert gap >= 8, "what was filmed during the stall is missing"
        assert not any(frame.is_corrupt for frame in after), "and the stream went on at a keyframe"


@pytest.mark.parametrize("kind", ["stall", "hang"])
def test_a_silent_camera_is_a_timeout_for_who_reads(street_source: SceneSource, opened: Any, kind: str) -> None:
    with RtspServer(street_source) as server, opened(server.url, read_s=0.5) as container:
        next(container.decode(video=0))
        server.faults.begin(parse_fault(kind))
        with pytest.raises(av.error.ExitError):
            for _ in container.demux(video=0):
                pass
        assert server.clients == 1


def test_a_hanging_camera_accepts_and_never_answers(file_source: FileSource) -> None:
    with RtspServer(file_source) as server:
        server.faults.hang()
        began = time.monotonic()
        # FFmpeg's interrupt during the opening comes out as either.
        with pytest.raises((av.error.ExitError, av.error.InvalidDataError)):
            av.open(server.url, options={"rtsp_transport": "tcp"}, timeout=(0.5, 0.5))
        assert time.monotonic() - began >= 0.5
        assert server.stats.connections == 1


def test_reset_ends_streams_and_the_next_connection_works(
    street_source: SceneSource, opened: Any, watch: Watch
) -> None:
    with RtspServer(street_source) as server:
        with opened(server.url) as container:
            next(container.decode(video=0))
            server.faults.reset()
            with suppress(OSError):  # PyAV reports a dropped live stream as its end, or as an error
                assert sum(1 for _ in container.demux(video=0)) < 1000
        assert len(watch(server.url, 1)) == 1


def test_down_refuses_and_up_comes_back_on_the_same_port(street_source: SceneSource, watch: Watch) -> None:
    with RtspServer(street_source) as server:
        url = server.url
        for _ in range(3):
            assert len(watch(url, 1)) == 1
            server.faults.down()
            with pytest.raises(av.error.ConnectionRefusedError):
                watch(url, 1)
            server.faults.up()
            assert server.url == url
        assert len(watch(url, 1)) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, av.error.HTTPUnauthorizedError),
        (404, av.error.HTTPNotFoundError),
        (503, av.error.HTTPServerError),
    ],
)
def test_a_forced_status_is_the_clients_error(
    file_source: FileSource, watch: Watch, status: int, error: type[Exception]
) -> None:
    with RtspServer(file_source) as server:
        server.faults.answer(status)
        with pytest.raises(error):
            watch(server.url, 1)
        server.faults.clear()
        assert len(watch(server.url, 1)) == 1


def test_corrupt_bytes_reach_the_decoder(street_source: SceneSource, opened: Any) -> None:
    with RtspServer(street_source) as server:
        server.faults.corrupt(1.0)
        with opened(server.url) as container:
            for packet in container.demux(video=0):
                if server.stats.packets_corrupted > 20:
                    break
                assert packet.size >= 0
        assert server.stats.packets_corrupted > 20


def test_flap_goes_down_and_up_until_cleared(file_source: FileSource, watch: Watch) -> None:
    with RtspServer(file_source) as server:
        server.faults.flap(0.6)
        eventually(lambda: not can_watch(watch, server.url))
        eventually(lambda: can_watch(watch, server.url))
        eventually(lambda: not can_watch(watch, server.url))
        server.faults.clear()
        assert can_watch(watch, server.url)


def test_a_slow_start_delays_the_description(file_source: FileSource, watch: Watch) -> None:
    with RtspServer(file_source) as server:
        server.faults.slow(0.5)
        began = time.monotonic()
        assert len(watch(server.url, 1)) == 1
        assert time.monotonic() - began >= 0.5


def test_a_source_that_fails_takes_its_camera_down(file_source: FileSource, watch: Watch) -> None:
    class Broken(FileSource):
        def units(self, demand: Any) -> Any:
            for number, unit in enumerate(super().units(demand)):
                if number == 5:
                    raise OSError("the disk is gone")
                yield unit

    with RtspServer(Broken(file_source.path)) as server:
        assert len(watch(server.url, 1000)) < 10
        with pytest.raises(av.error.ConnectionRefusedError):
            watch(server.url, 1)


def test_a_plan_begins_and_ends_faults_on_time(file_source: FileSource) -> None:
    with RtspServer(file_source) as server, plan(server.faults, [parse_fault("404@0.2+0.4")]):
        assert server.faults_state.status == 0
        eventually(lambda: server.faults_state.status == 404)
        eventually(lambda: server.faults_state.status == 0)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("stall@10+5", FaultSpec("stall", 0, 10, 5)),
        ("down", FaultSpec("down", 0, 0, None)),
        ("corrupt=0.5@1.5", FaultSpec("corrupt", 0.5, 1.5, None)),
        ("corrupt", FaultSpec("corrupt", 0.05, 0, None)),
        ("401@3", FaultSpec("401", 0, 3, None)),
    ],
)
def test_a_fault_is_read_as_it_is_written(text: str, spec: FaultSpec) -> None:
    assert parse_fault(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fire", "kinds: stall"),
        ("stall@", "KIND[=VALUE]"),
        ("stall@1.2.3", "not a number"),
        ("stall=3", "takes no value"),
        ("flap", "period, s"),
        ("corrupt=2", "from 0 to 1"),
        ("500", "kinds: stall"),
    ],
)
def test_a_bad_fault_says_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_fault(text)
    assert says in str(caught.value)


def test_every_kind_can_begin(file_source: FileSource) -> None:
    with RtspServer(file_source) as server:
        for kind, (meaning, low, high, default, _) in KINDS.items():
            value = default if default is not None else (low + min(high, 1)) / 2
            server.faults.begin(parse_fault(f"{kind}={value}" if meaning else kind))
            server.faults.clear()
            assert server.faults_state == FaultState(), f"{kind} is not over after clear"
            with socket.create_connection((server.host, server.port), timeout=5):
                pass  # and the server listens again
