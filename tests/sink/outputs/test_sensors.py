"""MQTT's sensors over restarts, on a real broker and a real Valkey: they show what is open, whoever knew it before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sink.outputs.delivery import Unreachable
from sink.outputs.discovery import sensor_id
from sink.outputs.lease import owner_key
from sink.outputs.mqtt import Mqtt
from sink.outputs.sensors import Sensors
from wire.alerts import ALERTS, from_json, to_json
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, publish_once
from wire.valkey import EmbeddedValkey

STATE, STATUS = "sparsecam/door/armed/state", "sparsecam/status"


def config_topic(camera: str, rule: str) -> str:
    return f"homeassistant/binary_sensor/{sensor_id(camera, rule)}/config"


@pytest.fixture
def run(valkey: EmbeddedValkey, broker: Any, start: Any, mqtt_settings: Any) -> Callable[..., Any]:
    """`run(field=value...)`: the output `ha` at work in this process, until `.stop()`."""

    def begin(**changes: Any) -> Any:
        settings = mqtt_settings(broker.port, **changes)
        sensors = Sensors("ha", lambda: connect(RedisSettings(url=valkey.url)))
        return start("ha", settings, Mqtt(settings, sensors), valkey.url)

    return begin


def newest(listener: Any, topic: str) -> bytes | None:
    said = listener.of(topic)
    return said[-1] if said else None


def test_sensors_are_there_and_off_before_any_alert(
    valkey: EmbeddedValkey, broker: Any, run: Any, watch: Any, listen: Any, wait_until: Any
) -> None:
    watch(valkey.url, door=["armed", "loiter"], yard=["armed"], shed=["armed"])
    run(cameras=["door", "yard"], rules=["armed"])
    listener = listen(broker.port)
    topics = [f"sparsecam/{camera}/armed/state" for camera in ("door", "yard")]
    wait_until(lambda: all(newest(listener, one) == b"OFF" for one in topics))
    wait_until(lambda: newest(listener, STATUS) == b"online")
    configs = {topic for topic, _ in listener.messages if topic.startswith("homeassistant/")}
    assert configs == {config_topic("door", "armed"), config_topic("yard", "armed")}


def test_of_two_incidents_the_end_of_one_leaves_the_sensor_on_after_a_restart(
    valkey: EmbeddedValkey,
    broker: Any,
    run: Any,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed"])
    first = run()
    publish(valkey.url, make_alert(1, incident="a"), make_alert(2, incident="b"))
    wait_until(lambda: first.runner.counts().delivered == 2)
    first.stop()
    listener = listen(broker.port)
    second = run()
    publish(valkey.url, make_alert(3, "closed", incident="a"))
    wait_until(lambda: second.runner.counts().delivered == 1)
    wait_until(lambda: newest(listener, "sparsecam/alerts") is not None)
    assert set(listener.of(STATE)) == {b"ON"}
    publish(valkey.url, make_alert(4, "closed", incident="b"))
    wait_until(lambda: newest(listener, STATE) == b"OFF")


def test_an_end_that_the_output_never_saw_turns_the_sensor_off(
    valkey: EmbeddedValkey,
    broker: Any,
    run: Any,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed"])
    first = run()
    publish(valkey.url, make_alert(1, incident="a"))
    wait_until(lambda: first.runner.counts().delivered == 1)
    first.stop()
    publish(valkey.url, make_alert(2, "closed", incident="a"))
    with redis.Redis.from_url(valkey.url) as client:
        client.xtrim(ALERTS, maxlen=0, approximate=False)  # as redis.alerts_maxlen does
    listener = listen(broker.port)
    wait_until(lambda: newest(listener, STATE) == b"ON")
    run()
    wait_until(lambda: newest(listener, STATE) == b"OFF")
    assert listener.of("sparsecam/alerts") == []


def test_a_backlog_ends_in_what_is(
    valkey: EmbeddedValkey,
    broker: Any,
    run: Any,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed", "line"])
    run().stop()  # its group is there now
    backlog = [
        make_alert(1, incident="a"),
        make_alert(2, incident="b"),
        make_alert(3, "closed", incident="a"),
        make_alert(4, incident="c", rule="line"),
        make_alert(5, "closed", incident="c", rule="line"),
    ]
    publish(valkey.url, *backlog)
    listener = listen(broker.port)
    running = run()
    wait_until(lambda: running.runner.counts().delivered == 5)
    wait_until(lambda: listener.of("sparsecam/alerts") == [to_json(one) for one in backlog])
    wait_until(lambda: listener.of("sparsecam/door/line/state")[-2:] == [b"ON", b"OFF"])
    assert newest(listener, STATE) == b"ON"


def test_only_incidents_that_the_output_wants_turn_its_sensors_on(
    valkey: EmbeddedValkey,
    broker: Any,
    run: Any,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed"], yard=["armed"])
    publish(valkey.url, make_alert(1, label="cat"), make_alert(2, camera="yard"))
    listener = listen(broker.port)
    run(labels=["pistol"])
    wait_until(lambda: newest(listener, "sparsecam/yard/armed/state") == b"ON")
    wait_until(lambda: newest(listener, STATE) == b"OFF")


def test_sensors_of_rules_and_cameras_that_are_gone_are_taken_back(
    valkey: EmbeddedValkey,
    broker: Any,
    run: Any,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed", "old"], yard=["armed"])
    first = run()
    publish(
        valkey.url,
        make_alert(1, incident="a", rule="old"),
        make_alert(2, incident="b", camera="yard", rule="system.camera_down"),
        make_alert(3, "closed", incident="b", camera="yard", rule="system.camera_down"),
    )
    wait_until(lambda: first.runner.counts().delivered == 3)
    first.stop()
    watch(valkey.url, door=["armed", "new"])
    gone = [("yard", "armed"), ("yard", "system.camera_down"), ("door", "old")]
    listener = listen(broker.port)
    wait_until(lambda: all(newest(listener, config_topic(*one)) for one in gone))
    second = run()
    wait_until(lambda: newest(listener, config_topic("door", "new")))
    wait_until(lambda: all(newest(listener, config_topic(*one)) == b"" for one in gone[:2]))
    assert newest(listener, config_topic("door", "old"))  # its incident is not over yet
    publish(valkey.url, make_alert(4, "closed", incident="a", rule="old"))
    wait_until(lambda: newest(listener, config_topic("door", "old")) == b"")
    assert second.runner.counts().failures == 0
    late = listen(broker.port)
    wait_until(lambda: newest(late, config_topic("door", "new")) and newest(late, STATE))
    kept = {topic for topic, _ in late.messages}
    assert not kept & {config_topic(*one) for one in gone}
    assert not any(topic.startswith(("sparsecam/yard/", "sparsecam/door/old/")) for topic in kept)
    # What comes late of a rule that is gone brings no sensor back.
    publish(valkey.url, make_alert(5, "closed", incident="z", rule="old"))
    wait_until(lambda: second.runner.counts().delivered == 2)
    wait_until(lambda: len(late.of("sparsecam/alerts")) == 1)
    assert not late.of(config_topic("door", "old"))


def test_a_word_of_a_predecessor_that_comes_late_is_put_right(
    valkey: EmbeddedValkey,
    broker: Any,
    run: Any,
    watch: Any,
    listen: Any,
    wait_until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sink.outputs.mqtt.SAY_AGAIN_S", 0.5)
    watch(valkey.url, door=["armed"])
    run()
    listener = listen(broker.port)
    wait_until(lambda: newest(listener, STATUS) == b"online" and newest(listener, STATE) == b"OFF")
    listener.say(STATUS, b"offline")  # the will of one whose host died
    listener.say(STATE, b"ON")  # the alert that one was frozen over
    wait_until(lambda: b"offline" in listener.of(STATUS) and b"ON" in listener.of(STATE))
    wait_until(lambda: newest(listener, STATUS) == b"online" and newest(listener, STATE) == b"OFF")


def test_without_redis_nobody_knows_what_is_open(broker: Any, mqtt_settings: Any, make_alert: Any) -> None:
    sensors = Sensors("ha", lambda: connect(RedisSettings(url="redis://127.0.0.1:1")))
    one = Mqtt(mqtt_settings(broker.port), sensors)
    for attempt in (one.refresh, lambda: one.deliver(make_alert(1), b"{}")):
        with pytest.raises(Unreachable, match="Redis, which knows what is open"):
            attempt()
    one.close()


PROGRAM = """
import signal, sys, threading
from sink.outputs.lease import Lease
from sink.outputs.mqtt import Mqtt
from sink.outputs.runner import OutputRunner
from sink.outputs.sensors import Sensors
from sink.outputs.settings import MqttSettings
from wire.settings import RedisSettings
from wire.redis_link import Link, connect
from wire.streams import PUBLISH_ONCE, publish_once

def connection():
    return connect(RedisSettings(url=sys.argv[1]))

stop, lease_stop = threading.Event(), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
settings = MqttSettings(kind="mqtt", host="127.0.0.1", port=int(sys.argv[2]), timeout_s=3)
lease = Lease("ha", connection, lease_s=3.0)
holder = threading.Thread(target=lease.run, args=(lease_stop,))
holder.start()
OutputRunner("ha", settings, Mqtt(settings, Sensors("ha", connection)), connection, lease).run(stop)
lease_stop.set()
holder.join()
"""

StartProcess = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def process(valkey: EmbeddedValkey, broker: Any) -> Iterator[StartProcess]:
    """Starts a process that delivers when it has the lease."""
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, valkey.url, str(broker.port)]
        running.append(subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL))
        return running[-1]

    yield begin
    for one in running:
        one.kill()
        one.wait()


def holder(url: str) -> bytes | None:
    with redis.Redis.from_url(url) as client:
        token: bytes | None = client.get(owner_key("ha"))
        return token


def test_a_killed_holders_heir_knows_what_is_open(
    valkey: EmbeddedValkey,
    broker: Any,
    process: StartProcess,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed"])
    listener = listen(broker.port)
    first = process()
    wait_until(lambda: newest(listener, STATE) == b"OFF", 20)
    publish(valkey.url, *(make_alert(seq, incident=f"i{seq}") for seq in range(3)))
    wait_until(lambda: newest(listener, "sparsecam/door/armed/attributes") == to_json(make_alert(2, incident="i2")))
    process()
    first.kill()
    wait_until(lambda: newest(listener, STATUS) == b"offline")
    publish(valkey.url, make_alert(10, "closed", incident="i0"), make_alert(11, "closed", incident="i1"))
    wait_until(lambda: newest(listener, STATUS) == b"online", 20)
    wait_until(lambda: len(set(listener.of("sparsecam/alerts"))) == 5)
    assert newest(listener, STATE) == b"ON"
    publish(valkey.url, make_alert(12, "closed", incident="i2"))
    wait_until(lambda: newest(listener, STATE) == b"OFF")


def test_a_frozen_holder_that_wakes_takes_back_nothing_of_what_its_heir_said(
    valkey: EmbeddedValkey,
    broker: Any,
    process: StartProcess,
    watch: Any,
    listen: Any,
    publish: Any,
    make_alert: Any,
    wait_until: Any,
) -> None:
    watch(valkey.url, door=["armed"])
    listener = listen(broker.port)
    first = process()
    wait_until(lambda: newest(listener, STATE) == b"OFF", 20)
    before = holder(valkey.url)
    process()
    os.kill(first.pid, signal.SIGSTOP)
    wait_until(lambda: (now := holder(valkey.url)) is not None and now != before, 20)
    publish(valkey.url, make_alert(1, incident="a"))
    wait_until(lambda: newest(listener, STATE) == b"ON")
    os.kill(first.pid, signal.SIGCONT)
    first.terminate()
    assert first.wait(15) == 0
    publish(valkey.url, make_alert(2, "closed", incident="a"))
    wait_until(lambda: newest(listener, STATE) == b"OFF")
    assert set(listener.of(STATUS)) == {b"online"}


CONFIG = """
runtime_dir: {folder}/run
redis: {{url: '{url}'}}
metrics: {{enabled: false}}
cameras: {{{cameras}}}
rules: {{armed: {{labels: [pistol], confirm_frames: 1, window_frames: 1}}}}
incidents: {{merge_s: 1000, idle_s: {idle_s}}}
outputs: {{ha: {{kind: mqtt, host: 127.0.0.1, port: {port}}}}}
"""


def test_a_sink_killed_and_started_without_the_camera_ends_its_incident_and_takes_its_sensors_back(
    valkey: EmbeddedValkey,
    broker: Any,
    listen: Any,
    detection_record: Any,
    wait_until: Any,
) -> None:
    root = Path(__file__).parents[3]
    listener = listen(broker.port)
    link = Link(connect(RedisSettings(url=valkey.url)))
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder:
        path = Path(folder) / "sparsecam.yaml"

        def start(cameras: str, idle_s: int) -> subprocess.Popen[bytes]:
            path.write_text(
                CONFIG.format(folder=folder, url=valkey.url, cameras=cameras, port=broker.port, idle_s=idle_s)
            )
            command = [sys.executable, "-m", "services.cli", "run", "sink", "--config", str(path)]
            return subprocess.Popen(
                command, cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL
            )

        sink = start("door: {source: x.mp4}, yard: {source: x.mp4}", 1000)
        try:
            wait_until(lambda: newest(listener, STATE) == b"OFF", 30)
            records = [detection_record(seq, "pistol") for seq in range(5)]
            link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source), *(publish_once(one, 1000) for one in records))
            wait_until(lambda: newest(listener, STATE) == b"ON")
            sink.kill()
            wait_until(lambda: newest(listener, STATUS) == b"offline")
            sink = start("porch: {source: x.mp4}, yard: {source: x.mp4}", 1)
            wait_until(lambda: newest(listener, STATUS) == b"online", 30)
            wait_until(lambda: newest(listener, config_topic("door", "armed")) == b"", 30)
            wait_until(lambda: newest(listener, "sparsecam/porch/armed/state") == b"OFF")
            wait_until(lambda: newest(listener, STATE) == b"")
            wait_until(lambda: len(set(listener.of("sparsecam/alerts"))) == 2)
        finally:
            sink.kill()
            sink.wait()
            link.close()
    opened, closed = (from_json(text) for text in dict.fromkeys(listener.of("sparsecam/alerts")))
    assert (closed.event, closed.incident) == ("closed", opened.incident)
    assert closed.detail["reason"] == "camera_removed"
    assert [one for one in listener.of(STATE) if one in (b"ON", b"OFF")][-1] == b"OFF"
