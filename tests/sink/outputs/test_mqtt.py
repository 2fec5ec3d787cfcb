"""MQTT on a real broker: alerts arrive, sensors are found, go on and off, and survive the broker's death."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.outputs.delivery import Unreachable
from sink.outputs.discovery import sensor_id
from sink.outputs.mqtt import Mqtt
from sink.outputs.sensors import Sensors
from wire.alerts import Alert, to_json
from wire.redis_link import connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

Make = Callable[..., Alert]
ALL = ["opened", "updated", "closed"]


@pytest.fixture
def mqtt(valkey: EmbeddedValkey, watch: Any, mqtt_settings: Any) -> Iterator[Callable[..., Mqtt]]:
    """`mqtt(port, *sensors, field=value...)`: an output whose sensors are (camera, rule)."""
    made: list[Mqtt] = []

    def make(port: int, *sensors: tuple[str, str], **changes: Any) -> Mqtt:
        watch(valkey.url, **{camera: [rule] for camera, rule in sensors})
        connection = partial(connect, RedisSettings(url=valkey.url))
        made.append(Mqtt(mqtt_settings(port, **changes), Sensors("ha", connection)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def deliver(one: Mqtt, alert: Alert) -> None:
    one.deliver(alert, to_json(alert))


def test_an_alert_arrives_as_it_is_and_turns_its_sensor_on_and_off(
    broker: Any, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    listener = listen(broker.port)
    one = mqtt(broker.port)
    events = [
        make_alert(1, incident="a"),
        make_alert(2, incident="b"),
        make_alert(3, "closed", incident="a"),  # b is still open
        make_alert(4, "updated", incident="b"),
        make_alert(5, "closed", incident="b"),
    ]
    for alert in events:
        deliver(one, alert)
    wait_until(lambda: len(listener.of("sparsecam/alerts")) == 5)  # said after the sensor's topics
    assert listener.of("sparsecam/alerts") == [to_json(alert) for alert in events]
    assert listener.of("sparsecam/door/armed/state") == [b"ON", b"ON", b"ON", b"ON", b"OFF"]
    assert listener.of("sparsecam/door/armed/attributes")[-1] == to_json(events[-1])


def test_home_assistant_finds_the_sensors_before_the_first_alert_of_each(
    broker: Any, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    one = mqtt(broker.port, ("door", "armed"), ("yard", "armed"))
    deliver(one, make_alert(1))
    late = listen(broker.port)  # retained: also for who comes later
    configs = [f"homeassistant/binary_sensor/{sensor_id(camera, 'armed')}/config" for camera in ("door", "yard")]
    wait_until(lambda: all(late.of(topic) for topic in configs) and late.of("sparsecam/status"))
    config = json.loads(late.of(configs[0])[0])
    assert config["state_topic"] == "sparsecam/door/armed/state"
    assert config["json_attributes_topic"] == "sparsecam/door/armed/attributes"
    assert config["availability_topic"] == "sparsecam/status"
    assert config["device"]["name"] == "door"
    told = [json.loads(late.of(topic)[0]) for topic in configs]
    assert len({one["unique_id"] for one in told}) == 2
    assert all(one["default_entity_id"] == f"binary_sensor.{one['unique_id']}" for one in told)
    assert late.of("sparsecam/status") == [b"online"]
    assert late.of("sparsecam/door/armed/state") == [b"ON"]
    assert late.of("sparsecam/alerts") == []  # not retained
    one.close()
    wait_until(lambda: late.of("sparsecam/status") == [b"online", b"offline"])


def test_units_on_one_broker_with_topics_of_their_own_have_sensors_of_their_own(
    broker: Any, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    units = [mqtt(broker.port, ("door", "armed"), topic=topic) for topic in ("sparsecam", "house", "barn")]
    for seq, one in enumerate(units):
        deliver(one, make_alert(seq))
    late = listen(broker.port)  # what is retained of each

    def told() -> dict[str, Any]:
        said = [json.loads(text) for topic, text in list(late.messages) if topic.startswith("homeassistant/")]
        return {one["state_topic"].partition("/")[0]: one for one in said}

    wait_until(lambda: len(told()) == 3)
    assert len({one["unique_id"] for one in told().values()}) == 3
    assert len({one["device"]["identifiers"][0] for one in told().values()}) == 3
    assert {topic: one["availability_topic"] for topic, one in told().items()} == {
        "sparsecam": "sparsecam/status",
        "house": "house/status",
        "barn": "barn/status",
    }
    units[1].close()
    wait_until(lambda: late.of("house/status")[-1:] == [b"offline"])
    assert (late.of("sparsecam/status"), late.of("barn/status")) == ([b"online"], [b"online"])


def test_with_the_default_topic_a_sensor_keeps_the_id_it_always_had() -> None:
    assert sensor_id("door", "armed", topic="sparsecam") == sensor_id("door", "armed") == "sparsecam_door_armed_fb0103"


def test_a_sensor_of_the_system_is_told_of_with_its_first_alert(
    broker: Any, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    listener = listen(broker.port)
    deliver(mqtt(broker.port), make_alert(1, rule="system.camera_down"))
    topic = f"homeassistant/binary_sensor/{sensor_id('door', 'system.camera_down')}/config"
    wait_until(lambda: listener.of(topic))
    assert json.loads(listener.of(topic)[0])["device_class"] == "problem"


def test_a_client_that_dies_is_shown_as_offline(
    broker: Any, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    listener = listen(broker.port)
    one = mqtt(broker.port)
    deliver(one, make_alert(1))
    assert one._client is not None
    one._client._sock_close()  # no goodbye
    wait_until(lambda: b"offline" in listener.of("sparsecam/status"))


def test_one_that_only_delivers_says_nothing_of_sensors_and_of_itself(
    broker: Any, listen: Any, mqtt: Any, mqtt_settings: Any, make_alert: Make, wait_until: Any
) -> None:
    listener = listen(broker.port)
    one = mqtt(broker.port)
    deliver(one, make_alert(1))
    beside = Mqtt(mqtt_settings(broker.port))  # as `sparsecam deadletters replay`
    deliver(beside, make_alert(2, "closed"))
    beside.close()
    deliver(one, make_alert(3))
    wait_until(lambda: len(listener.of("sparsecam/alerts")) == 3)
    assert len(listener.of("sparsecam/door/armed/state")) == 2
    assert set(listener.of("sparsecam/door/armed/state")) == {b"ON"}
    assert listener.of("sparsecam/status") == [b"online"]


def test_a_broker_that_was_down_gets_everything(
    broker: Any,
    listen: Any,
    make_alert: Make,
    valkey: EmbeddedValkey,
    start: Any,
    publish: Any,
    wait_until: Any,
    mqtt: Any,
    mqtt_settings: Any,
) -> None:
    running = start("ha", mqtt_settings(broker.port, events=ALL), mqtt(broker.port), valkey.url)
    publish(valkey.url, *(make_alert(seq) for seq in range(20)))
    wait_until(lambda: running.runner.counts().delivered == 20)
    broker.stop()
    publish(valkey.url, *(make_alert(seq) for seq in range(20, 40)))
    wait_until(lambda: running.runner.counts().failures >= 2)
    broker.start()
    wait_until(lambda: running.runner.counts().delivered == 40)
    listener = listen(broker.port)  # the newest is retained
    wait_until(lambda: listener.of("sparsecam/door/armed/attributes") == [to_json(make_alert(39))])
    assert running.runner.counts().buried == 0


def test_nobody_there_and_nobody_who_speaks_mqtt_take_the_time_limit_at_most(mqtt: Any, make_alert: Make) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="did not answer"):
            deliver(mqtt(port, timeout_s=0.5), make_alert(1))
        assert time.monotonic() - begun < 2
    with pytest.raises(Unreachable, match="refused"):
        deliver(mqtt(port, timeout_s=0.5), make_alert(1))


def test_a_broker_that_refuses_us_is_named_without_the_password(
    tmp_path: Path, start_broker: Any, mqtt: Any, make_alert: Make
) -> None:
    (tmp_path / "passwords").write_text("")
    broker = start_broker(tmp_path / "passwords")
    with pytest.raises(Unreachable, match="refused us") as caught:
        deliver(mqtt(broker.port, username="me", password="hunter22"), make_alert(1))
    assert "hunter22" not in str(caught.value)


def test_tls_works_and_checks_the_certificate(
    certificate: tuple[Path, Path], start_broker: Any, mqtt: Any, make_alert: Make
) -> None:
    broker = start_broker(certificate=certificate)
    with pytest.raises(Unreachable, match="certificate verify failed"):
        deliver(mqtt(broker.port, host="localhost", tls=True), make_alert(1))
    deliver(mqtt(broker.port, host="localhost", tls=True, ca_file=certificate[0]), make_alert(2))


@given(st.lists(st.text("ab._-", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_sensor_ids_are_plain_and_differ(names: list[str], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.text("ab._-", min_size=1, max_size=4), min_size=1, max_size=3))
    assert sensor_id(*names).replace("-", "").replace("_", "").isalnum()
    assert (sensor_id(*names) == sensor_id(*others)) == (names == others)
