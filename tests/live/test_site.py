"""The promises of the live path, kept by real processes: nothing of a file is lost, cameras do not hurt each other."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from ingest.sim.file_source import FileSource
from ingest.sim.rtsp_server import RtspServer
from wire.alerts import ALERTS, from_json

Wait = Callable[..., None]

ANY_BOX = {"box": {"labels": ["bright"], "min_score": 0.4, "confirm_frames": 2, "window_frames": 4, "cooldown_s": 2}}


def ended(one: Any, camera: str) -> Callable[[], bool]:
    return lambda: one.cameras().get(camera, {}).get("state") == "ended"


def test_killing_workers_while_a_file_plays_loses_no_frame_and_repeats_none(site, clip, law, wait_until) -> None:
    one = site(cameras={"film": {"source": str(clip(1200, fps=50)), "pace": "realtime"}}, rules=ANY_BOX)
    for kills, at in enumerate((100, 300, 500, 700)):
        wait_until(lambda at=at: one.cameras().get("film", {}).get("detected", 0) > at, timeout_s=60)
        wait_until(lambda: any(report.healthy() for report in one.reports("detector")), timeout_s=60)
        one.kill("detector", kills)
    wait_until(ended(one, "film"), timeout_s=90)
    film = one.cameras()["film"]
    assert (film["captured"], film["detected"]) == (1200, 1200) and law(film)
    times = one.detected("film")
    assert len(times) == 1200 and set(times.values()) == {1}


def test_killing_the_broker_while_a_file_plays_loses_no_frame_and_repeats_none(site, clip, law, wait_until) -> None:
    one = site(cameras={"film": {"source": str(clip(500, fps=40)), "pace": "realtime"}})
    for at in (100, 250):
        wait_until(lambda at=at: one.cameras().get("film", {}).get("detected", 0) > at, timeout_s=60)
        one.kill("broker")
    wait_until(ended(one, "film"), timeout_s=60)
    film = one.cameras()["film"]
    assert (film["captured"], film["detected"]) == (500, 500) and law(film)
    times = one.detected("film")
    assert len(times) == 500 and set(times.values()) == {1}


def test_redis_dies_and_comes_back_and_no_alert_is_lost(site, clip, wait_until) -> None:
    film = {"source": str(clip(400)), "pace": "realtime"}
    one = site(cameras={"film": film}, rules=ANY_BOX, incidents={"update_s": 2})
    wait_until(lambda: one.cameras().get("film", {}).get("detected", 0) > 100, timeout_s=60)
    with one.redis() as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)  # `up` starts it again, with its data
    wait_until(ended(one, "film"), timeout_s=60)
    assert one.cameras()["film"]["detected"] == 400

    def seqs() -> list[int]:
        with contextlib.suppress(Exception), one.redis() as client:
            alerts = [from_json(fields[b"d"]) for _, fields in client.xrange(ALERTS)]
            return sorted(alert.seq for alert in alerts if alert.rule == "box" and alert.seq is not None)
        return []

    # The box is always there: its incident is told every 2 s (of 25 fps), for the last time at 350 or so.
    wait_until(lambda: len(seqs()) >= 8, timeout_s=20)
    assert [b - a for a, b in itertools.pairwise(seqs())] == [50] * 7


def test_eight_cameras_of_which_one_is_dead_one_flaps_and_one_is_frozen(site, clip, law, wait_until) -> None:
    names = [f"cam-{number}" for number in range(8)]
    with contextlib.ExitStack() as stack:
        path = clip(150, fps=15, gop=15)
        servers = {name: stack.enter_context(RtspServer(FileSource(path))) for name in names}
        servers["cam-0"].faults.down()
        one = site(cameras={name: {"source": server.url} for name, server in servers.items()})
        healthy = names[3:]
        wait_until(lambda: all(one.cameras().get(name, {}).get("detected", 0) > 15 for name in healthy), timeout_s=60)
        servers["cam-1"].faults.flap(3.0)
        servers["cam-2"].faults.hang()
        before, began_s = one.cameras(), time.monotonic()
        time.sleep(12)  # the rate over a span is what is promised
        after, span_s = one.cameras(), time.monotonic() - began_s
        for name in healthy:
            rate = (after[name]["captured"] - before[name]["captured"]) / span_s
            assert rate == pytest.approx(15, abs=1.5), f"{name} delivers {rate:.1f} of 15 frames a second"
            assert after[name]["detected"] - before[name]["detected"] >= 0.8 * 15 * span_s
        assert all(law(camera) for camera in after.values())
        assert after["cam-0"]["captured"] == 0 and "refused" in after["cam-0"]["error"]
        assert after["cam-1"]["reconnects"] >= 2
        assert after["cam-2"]["error"]

        returned_s = time.monotonic()
        servers["cam-0"].faults.up()
        # Health is written once a second, so it is the metric's clock that is read: the frame's own event time.
        wait_until(lambda: bool(one.detected("cam-0")), timeout_s=10)
        first_frame_s = time.monotonic() - returned_s
        assert first_frame_s < 2.0, f"first frame {first_frame_s:.1f} s after its server's return"
        assert one.stop() < 6.0
        assert all(law(camera) and camera["in_flight"] == 0 for camera in one.cameras().values())


def test_everything_stops_within_five_seconds_and_leaves_no_process(site, clip, wait_until) -> None:
    one = site(cameras={"film": {"source": str(clip(2000)), "pace": "realtime"}})
    wait_until(lambda: one.cameras().get("film", {}).get("detected", 0) > 20, timeout_s=60)
    pids = [report.pid for role in ("broker", "ingest", "detector", "sink") for report in one.reports(role)]
    assert len(pids) == 5
    assert one.stop() < 6.0  # five, and the interpreter's own end
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    film = one.cameras()["film"]
    assert film["captured"] == film["detected"], "a file's frames on their way arrive"


def test_the_log_gives_the_url_of_the_embedded_valkey(site, wait_until) -> None:
    one = site()
    wait_until(lambda: "url=unix://" in one.log.read_text(), timeout_s=30)
    url = one.log.read_text().partition("url=")[2].split()[0]

    def answers() -> bool:
        with contextlib.suppress(redis.ConnectionError), redis.Redis.from_url(url) as client:
            return bool(client.ping())
        return False

    wait_until(answers, timeout_s=30)


def test_no_password_of_a_camera_is_seen_anywhere(site, wait_until) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"rtsp://admin:hunter2secret@127.0.0.1:{closed.getsockname()[1]}/x"
        one = site(cameras={"door": {"source": url}})
        wait_until(lambda: bool(one.cameras().get("door", {}).get("error")), timeout_s=30)
    one.stop()
    for path in [one.log, *(one.runtime / "health").glob("*.json")]:
        assert "hunter2secret" not in path.read_text(), path
