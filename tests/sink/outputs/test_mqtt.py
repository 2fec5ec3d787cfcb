"""MQTT on a real broker: alerts arrive, sensors are found, go on and off, and survive the broker's death."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from amqtt.broker import Broker
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from sink.outputs.delivery import Unreachable
from sink.outputs.mqtt import Mqtt, sensor_id
from sink.outputs.settings import MqttSettings
from wire.alerts import Alert, to_json
from wire.valkey import EmbeddedValkey

Make = Callable[..., Alert]
AUTH = "amqtt.plugins.authentication"
ALL = ["opened", "updated", "closed"]


class RunningBroker:
    """amqtt on a thread of its own; `stop` and `start` on the same port."""

    def __init__(self, password_file: Path | None = None, certificate: tuple[Path, Path] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._auth: dict[str, dict[str, object]] = {f"{AUTH}.AnonymousAuthPlugin": {"allow_anonymous": True}}
        self._certificate = certificate
        if password_file is not None:
            self._auth = {f"{AUTH}.FileAuthPlugin": {"password_file": str(password_file)}}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._broker: Broker | None = None
        self.start()

    def start(self) -> None:
        self._do(self._start())

    def stop(self) -> None:
        if self._broker is not None:
            self._do(self._broker.shutdown())
            self._broker = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _start(self) -> None:
        listener: dict[str, object] = {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}
        if self._certificate is not None:
            certfile, keyfile = map(str, self._certificate)
            listener |= {"ssl": True, "certfile": certfile, "keyfile": keyfile}
        self._broker = Broker({"listeners": {"default": listener}, "plugins": self._auth})
        await self._broker.start()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    running = RunningBroker()
    yield running
    running.close()


class Listener:
    """A subscriber to everything."""

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, bytes]] = []
        ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert ready.wait(5)

    def _take(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload))

    def of(self, topic: str) -> list[bytes]:
        return [payload for name, payload in list(self.messages) if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listen() -> Iterator[Callable[[int], Listener]]:
    listeners: list[Listener] = []

    def begin(port: int) -> Listener:
        listeners.append(Listener(port))
        return listeners[-1]

    yield begin
    for one in listeners:
        one.close()


def settings(port: int, **changes: Any) -> MqttSettings:
    quick = {"retry_first_s": 0.05, "retry_most_s": 0.2, "timeout_s": 3}
    return MqttSettings(**{"kind": "mqtt", "host": "127.0.0.1", "port": port, **quick, **changes})


@pytest.fixture
def mqtt() -> Iterator[Callable[..., Mqtt]]:
    made: list[Mqtt] = []

    def make(port: int, *sensors: tuple[str, str], **changes: Any) -> Mqtt:
        made.append(Mqtt(settings(port, **changes), sensors))
        return made[-1]

    yield make
    for one in made:
        one.close()


def deliver(one: Mqtt, alert: Alert) -> None:
    one.deliver(alert, to_json(alert))


def test_an_alert_arrives_as_it_is_and_turns_its_sensor_on_and_off(
    broker: RunningBroker, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
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
    wait_until(lambda: len(listener.of("sparsecam/door/armed/state")) == 5)
    assert listener.of("sparsecam/alerts") == [to_json(alert) for alert in events]
    assert listener.of("sparsecam/door/armed/state") == [b"ON", b"ON", b"ON", b"ON", b"OFF"]
    assert listener.of("sparsecam/door/armed/attributes")[-1] == to_json(events[-1])


def test_home_assistant_finds_the_sensors_before_the_first_alert_of_each(
    broker: RunningBroker, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
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
    assert len({json.loads(late.of(topic)[0])["unique_id"] for topic in configs}) == 2
    assert late.of("sparsecam/status") == [b"online"]
    assert late.of("sparsecam/door/armed/state") == [b"ON"]
    assert late.of("sparsecam/alerts") == []  # not retained
    one.close()
    wait_until(lambda: late.of("sparsecam/status") == [b"online", b"offline"])


def test_a_sensor_of_the_system_is_told_of_with_its_first_alert(
    broker: RunningBroker, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    listener = listen(broker.port)
    deliver(mqtt(broker.port), make_alert(1, rule="system.camera_down"))
    topic = f"homeassistant/binary_sensor/{sensor_id('door', 'system.camera_down')}/config"
    wait_until(lambda: listener.of(topic))
    assert json.loads(listener.of(topic)[0])["device_class"] == "problem"


def test_a_client_that_dies_is_shown_as_offline(
    broker: RunningBroker, listen: Any, mqtt: Any, make_alert: Make, wait_until: Any
) -> None:
    listener = listen(broker.port)
    one = mqtt(broker.port)
    deliver(one, make_alert(1))
    assert one._client is not None
    one._client._sock_close()  # no goodbye
    wait_until(lambda: b"offline" in listener.of("sparsecam/status"))


def test_a_broker_that_was_down_gets_everything(
    broker: RunningBroker,
    listen: Any,
    make_alert: Make,
    valkey: EmbeddedValkey,
    start: Any,
    publish: Any,
    wait_until: Any,
) -> None:
    one = settings(broker.port, events=ALL)
    running = start("ha", one, Mqtt(one), valkey.url)
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


def test_a_broker_that_refuses_us_is_named_without_the_password(tmp_path: Path, mqtt: Any, make_alert: Make) -> None:
    (tmp_path / "passwords").write_text("")
    broker = RunningBroker(tmp_path / "passwords")
    try:
        with pytest.raises(Unreachable, match="refused us") as caught:
            deliver(mqtt(broker.port, username="me", password="hunter22"), make_alert(1))
        assert "hunter22" not in str(caught.value)
    finally:
        broker.close()


def test_tls_works_and_checks_the_certificate(certificate: tuple[Path, Path], mqtt: Any, make_alert: Make) -> None:
    broker = RunningBroker(certificate=certificate)
    try:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            deliver(mqtt(broker.port, host="localhost", tls=True), make_alert(1))
        deliver(mqtt(broker.port, host="localhost", tls=True, ca_file=certificate[0]), make_alert(2))
    finally:
        broker.close()


@given(st.lists(st.text("ab._-", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_sensor_ids_are_plain_and_differ(names: list[str], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.text("ab._-", min_size=1, max_size=4), min_size=1, max_size=3))
    assert sensor_id(*names).replace("-", "").replace("_", "").isalnum()
    assert (sensor_id(*names) == sensor_id(*others)) == (names == others)
