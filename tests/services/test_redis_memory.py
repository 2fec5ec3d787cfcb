"""The embedded Valkey gets memory for all that a site keeps, and who cannot have it is told before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import redis

from services import redis_memory
from services.config import Config
from services.redis_memory import ALERT_BYTES, FRAME_BYTES, memory_mb, needed_mb, too_small
from services.supervisor import Supervisor
from wire.alerts import Alert, Box, Evidence, FrameSize, Object, alert_once, rfc3339
from wire.messages import DetectionRecord
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, publish_once
from wire.valkey import EmbeddedValkey

GIB = 1 << 30
Run = Callable[..., subprocess.CompletedProcess[str]]


def site(cameras: int, **settings: object) -> Config:
    return Config.model_validate(
        {"cameras": {f"c{number}": {"source": "sim://street"} for number in range(cameras)}, "redis": settings}
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the machine so much memory, and its container a limit."""

    def give(total: int, limit: int | None = None) -> None:
        monkeypatch.setattr(redis_memory, "memory_total_bytes", lambda: total)
        monkeypatch.setattr(redis_memory, "memory_limit_bytes", lambda: limit)

    return give


def test_two_hundred_cameras_fit_where_the_machine_has_the_memory(machine: Callable[..., None]) -> None:
    machine(16 * GIB)
    assert memory_mb(site(1)) == memory_mb(site(20)) == 512
    assert memory_mb(site(200)) == needed_mb(site(200)) > 200 * 10_000 * FRAME_BYTES >> 20
    assert too_small(site(200)) == ""


def test_it_takes_no_more_than_a_quarter_of_a_machine_and_says_what_does_not_fit(machine: Callable[..., None]) -> None:
    machine(16 * GIB, limit=4 * GIB)
    assert memory_mb(site(200)) == 1024
    text = too_small(site(200))
    assert f"may need {needed_mb(site(200))} MB; the embedded Valkey has 1024 MB" in text
    fits = int(text.partition("lower redis.detections_maxlen to ")[2].partition(",")[0])
    assert too_small(site(200, detections_maxlen=fits)) == ""
    assert too_small(site(200, url="redis://elsewhere")) == "", "its memory is not known"


def test_what_is_set_counts(machine: Callable[..., None]) -> None:
    machine(2 * GIB)
    assert memory_mb(site(200, memory_mb=3000)) == 3000
    assert too_small(site(200, memory_mb=3000)) == ""
    assert "has 64 MB" in too_small(site(1, memory_mb=64)) and "alerts_maxlen" in too_small(site(1, memory_mb=64))


def test_up_gives_the_server_that_memory(folder: Path) -> None:
    config = site(0, memory_mb=77).model_copy(update={"runtime_dir": folder})
    with Supervisor(config, None, workers=0, roles=()), redis.Redis.from_url(config.redis_url) as client:
        assert client.info("memory")["maxmemory"] == 77 << 20


def test_check_warns_at_the_place(invoke: Run, folder: Path) -> None:
    path = folder / "c.yaml"
    path.write_text("cameras: {a: {source: 'sim://street'}}\nredis:\n  memory_mb: 64\n")
    done = invoke("check", str(path))
    assert done.returncode == 0
    assert f"{path}:3:14: warning: redis.memory_mb: 1 cameras with 10000 frames kept of each" in done.stderr
    path.write_text("cameras: {a: {source: 'sim://street'}}\nredis: {memory_mb: 64, url: 'redis://127.0.0.1:1'}\n")
    assert "redis.memory_mb: has no effect, as redis.url names a server" in invoke("check", str(path)).stderr


def test_up_warns_too(folder: Path, config_file: Path, environment: dict[str, str]) -> None:
    with config_file.open("a") as more:
        more.write("redis: {memory_mb: 64}\n")
    command = [sys.executable, "-m", "services.cli", "up", "-c", str(config_file)]
    up = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert up.stderr is not None
    try:
        assert any("redis.memory_mb: 0 cameras with" in line for line in up.stderr)
    finally:
        up.terminate()
        up.communicate(timeout=20)


def test_frames_and_alerts_take_what_is_reckoned(
    own_valkey: EmbeddedValkey, detection_record: Callable[..., DetectionRecord]
) -> None:
    link = Link(connect(RedisSettings(url=own_valkey.url)))
    link.one("SCRIPT", "LOAD", PUBLISH_ONCE.source)
    names = {
        "session": "abcdef012345",
        "broker": "abcdef012345",
        "worker": "detector-host-12345-abcdef",
        "model": "street",
    }
    record = detection_record(0, *["person"] * 10, **names)
    box = Box(1234.5678, 234.5678, 1434.5678, 634.5678)

    def alert(number: int) -> Alert:
        return Alert(
            1, f"{number:032x}", f"{number:032x}", "closed", "front-door", "somebody-at-the-door", "a line " * 6,
            rfc3339(10**15), rfc3339(10**15), "person", 0.91234, number, box, [Object("person", 0.91, box, 1)] * 2,
            frame=FrameSize(1920, 1080), evidence=Evidence(3, 5), model="street", session="abcdef012345", seq=number,
            snapshot="http://host/" + "0" * 64, clip="http://host/" + "0" * 64, detection_ms=12.345, latency_ms=123.4,
        )  # fmt: skip

    def bytes_each(commands: list[tuple]) -> float:
        before = dict(line.split(":") for line in link.one("INFO", "memory").decode().split() if ":" in line)
        link.ask(*commands)
        after = dict(line.split(":") for line in link.one("INFO", "memory").decode().split() if ":" in line)
        return (int(after["used_memory"]) - int(before["used_memory"])) / len(commands)

    frames = [publish_once(msgspec.structs.replace(record, seq=number), 10_000) for number in range(2000)]
    assert FRAME_BYTES * 0.7 < bytes_each(frames) < FRAME_BYTES * 1.1
    assert (
        ALERT_BYTES * 0.7
        < bytes_each([alert_once(alert(number), 10_000) for number in range(1000)])
        < ALERT_BYTES * 1.1
    )
    link.close()
