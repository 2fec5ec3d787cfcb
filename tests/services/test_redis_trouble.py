"""Detector and sink say in their health reports when Redis does not take what they write, and in whose words."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from services.commands import doctor
from services.config import Config
from services.detector import set_health as set_detector_health
from services.sink import set_health as set_sink_health
from sink.camera import Plan
from sink.settings import SinkSettings
from sink.sink import Sink
from wire.health import Health
from wire.messages import DetectionRecord
from wire.outbox import Outbox
from wire.redis_link import connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

FULL = "redis refuses writes: command not allowed when used memory > 'maxmemory'"


def detector_health(outbox: Outbox) -> Health:
    detector: Any = SimpleNamespace(
        refusal="", model_name="m", model=SimpleNamespace(sha256="s"), choice=SimpleNamespace(engine="e")
    )
    stats = SimpleNamespace(detected=1, failed=0, stale=0, last_inference_ms=1.0)
    worker: Any = SimpleNamespace(detector=detector, stats=stats)
    follower: Any = SimpleNamespace(trouble="")
    health = Health.null()
    set_detector_health(health, worker, follower, "0", outbox.stats())
    return health


def test_a_detector_is_degraded_while_redis_takes_nothing(
    own_valkey: EmbeddedValkey, detection_record: Callable[..., DetectionRecord], wait_until: Callable[..., None]
) -> None:
    settings = RedisSettings(url=own_valkey.url, timeout_s=0.3)
    outbox = Outbox(lambda: connect(settings), 2, maxlen=100)
    with redis.Redis.from_url(own_valkey.url) as client:
        assert detector_health(outbox).state == "ok"
        client.config_set("maxmemory", 1)
        outbox.put(detection_record(0))
        wait_until(lambda: detector_health(outbox).state == "degraded")
        assert detector_health(outbox).detail["redis_error"].startswith(FULL)
        for seq in range(1, 4):
            outbox.put(detection_record(seq))
        client.config_set("maxmemory", 0)
    assert outbox.flush(10)
    # It is over, and yet something was lost just now.
    assert detector_health(outbox).state == "degraded"
    assert "shed" in detector_health(outbox).detail["redis_error"]
    own_valkey.stop()
    outbox.put(detection_record(9))
    wait_until(lambda: detector_health(outbox).detail["redis_error"].startswith("redis away: "))
    outbox.close(0)


@contextmanager
def running_sink(valkey: EmbeddedValkey) -> Iterator[Health]:
    """What a sink of one camera says of itself."""
    sink = Sink(SinkSettings(lease_s=1), Plan(), ["door"], RedisSettings(url=valkey.url))
    health, stop = Health.null(), threading.Event()
    thread = threading.Thread(target=sink.run, args=(stop, lambda: set_sink_health(sink.snapshot(), health)))
    thread.start()
    try:
        yield health
    finally:
        stop.set()
        thread.join()


def test_a_sink_is_degraded_while_redis_takes_nothing(
    own_valkey: EmbeddedValkey, wait_until: Callable[..., None]
) -> None:
    with running_sink(own_valkey) as health:
        wait_until(lambda: health.state == "ok")
        with redis.Redis.from_url(own_valkey.url) as client:
            client.config_set("maxmemory", 1)
            client.delete("sparsecam:lease:{door}")  # what it must write again
            wait_until(lambda: health.state == "degraded")
            assert health.detail["redis"] == "refuses writes"
            assert health.detail["redis_error"].startswith(FULL)
            client.config_set("maxmemory", 0)
        wait_until(lambda: health.state == "ok")
        assert "redis_error" not in health.detail
        own_valkey.stop()
        wait_until(lambda: health.detail["redis"] == "away")


def test_a_sink_is_degraded_while_alerts_wait_for_an_output_that_takes_none(own_valkey: EmbeddedValkey) -> None:
    sink, health = Sink(SinkSettings(), Plan(), [], RedisSettings(url=own_valkey.url)), Health.null()
    sink._connect()
    set_sink_health(sink.snapshot(), health, {})
    assert health.state == "ok"
    set_sink_health(sink.snapshot(), health, {"office": 7})
    assert (health.state, health.detail["outputs_unreachable"]) == ("degraded", {"office": 7})
    sink._drop_link()


def test_a_sink_is_degraded_while_redis_may_evict_alerts(
    own_valkey: EmbeddedValkey, wait_until: Callable[..., None]
) -> None:
    with running_sink(own_valkey) as health:
        wait_until(lambda: health.state == "ok")
        with redis.Redis.from_url(own_valkey.url) as client:
            client.config_set("maxmemory", "100mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
            wait_until(lambda: health.state == "degraded")
            assert health.detail["redis_evicts"].startswith("allkeys-lru: alerts can be lost; set maxmemory-policy")
            client.config_set("maxmemory-policy", "noeviction")
            wait_until(lambda: health.state == "ok")


@pytest.mark.parametrize(
    ("rights", "state", "found"),
    [
        (("+@all",), "ok", "answers and takes writes"),
        (("+@all", "-@write"), "broken", "takes no write: .*permission"),
        (("+@all", "resetkeys", "~other:*"), "broken", "takes no write"),
    ],
)
def test_doctor_tries_a_write(own_valkey: EmbeddedValkey, rights: tuple[str, ...], state: str, found: str) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "few", "on", "nopass", "~*", "&*", *rights)
    config = Config.model_validate({"redis": {"url": f"{own_valkey.url}?username=few&password=s3cret"}})
    finding = doctor._redis(config)
    assert finding.state == state
    assert re.search(found, finding.found)
    assert "s3cret" not in finding.found
    with redis.Redis.from_url(own_valkey.url) as client:
        assert client.keys("sparsecam:*") == []


def test_doctor_warns_of_a_redis_that_evicts(own_valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    finding = doctor._redis(Config.model_validate({"redis": {"url": own_valkey.url}}))
    assert (finding.state, finding.mend[:28]) == ("warning", "Set maxmemory-policy noevict")
