"""Rules are switched off and on while the sink runs, and stay so over restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from services.cli import app
from sink.camera import Plan
from sink.incident_settings import IncidentSettings, SystemSettings
from sink.settings import PresenceRule, SinkSettings
from sink.sink import Sink
from sink.tracking import TrackerSettings
from wire.alerts import ALERTS, from_json
from wire.arming import DISARMED
from wire.cameras import CameraStatus, write_status
from wire.messages import DetectionRecord
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, publish_once
from wire.valkey import EmbeddedValkey

MakeRecord = Callable[..., DetectionRecord]
RULE = PresenceRule(confirm_frames=1, window_frames=1, cooldown_s=0)
PLAN = Plan(
    rules={"one": RULE, "two": RULE},
    tracker=TrackerSettings(confirm_frames=1),
    incidents=IncidentSettings(merge_s=0.1, system=SystemSettings(camera_down_s=1)),
)
CONFIG = "cameras: {door: {source: x.mp4}, yard: {source: x.mp4}}\nrules: {one: {}, two: {}}\nredis: {url: %s}\n"


@contextmanager
def sink(url: str) -> Iterator[Sink]:
    one, stop = Sink(SinkSettings(), PLAN, ["door", "yard"], RedisSettings(url=url)), threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join(10)


@pytest.fixture
def sparsecam(valkey: EmbeddedValkey, tmp_path: Path) -> Callable[..., str]:
    config = tmp_path / "sparsecam.yaml"
    config.write_text(CONFIG % valkey.url)

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, "-c", str(config)])
        assert result.exit_code == code, result.output
        return result.output

    return run


def send(url: str, *commands: tuple) -> None:
    link = Link(connect(RedisSettings(url=url)))
    replies = link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source), *commands)
    link.close()
    assert not any(isinstance(reply, Exception) for reply in replies)


def opened(url: str) -> list[tuple[str, str]]:
    with redis.Redis.from_url(url) as client:
        alerts = [from_json(fields[b"d"]) for _, fields in client.xrange(ALERTS)]
    return sorted((alert.camera, alert.rule) for alert in alerts if alert.event == "opened")


def test_a_disarmed_rule_is_silent_until_it_is_armed_also_after_a_restart(
    valkey: EmbeddedValkey, sparsecam: Callable[..., str], detection_record: MakeRecord, wait_until: Callable[..., None]
) -> None:
    assert sparsecam("disarm", "--camera", "door", "--rule", "one").startswith("1 of 1 disarmed")
    for order in (0, 1):  # each time another sink
        with sink(valkey.url) as running:
            seen = [detection_record(10 * order, "cat", camera=camera, order=order) for camera in ("door", "yard")]
            send(valkey.url, *(publish_once(one, 1000) for one in seen))
            wait_until(lambda: running.snapshot().read == 2)
            assert running.snapshot().disarmed == 1
    once = [("door", "two"), ("yard", "one"), ("yard", "two")]
    assert opened(valkey.url) == sorted(once * 2)
    with sink(valkey.url) as running:
        wait_until(lambda: running.snapshot().disarmed == 1)
        assert sparsecam("arm").startswith("1 of 4 armed")
        wait_until(lambda: running.snapshot().disarmed == 0)
        send(valkey.url, publish_once(detection_record(20, "cat", order=2), 1000))
        wait_until(lambda: ("door", "one") in opened(valkey.url))


def test_the_cameras_own_alerts_still_come(
    valkey: EmbeddedValkey, sparsecam: Callable[..., str], wait_until: Callable[..., None]
) -> None:
    sparsecam("disarm")
    send(valkey.url, write_status("door", CameraStatus("streaming", True, same_s=1000), "ingest"))
    with sink(valkey.url):
        wait_until(lambda: opened(valkey.url) == [("door", "system.picture_frozen")])


def test_what_is_disarmed_is_shown_and_unknown_names_are_refused(
    valkey: EmbeddedValkey, sparsecam: Callable[..., str]
) -> None:
    sparsecam("disarm", "--rule", "two")
    with redis.Redis.from_url(valkey.url) as client:
        client.hset(DISARMED, "rubbish", "x")
    lines = sparsecam("armed").splitlines()
    assert [("armed" if line.endswith("armed") else "off") for line in lines] == ["armed", "off", "armed", "off"]
    assert "since 2" in lines[1]
    assert '"armed": false' in sparsecam("armed", "--json")
    sparsecam("arm", "--camera", "dor", code=78)
    sparsecam("disarm", "--rule", "onne", code=78)
