"""MQTT: every alert as JSON, and each rule of each camera as a sensor that Home Assistant finds by itself.

Topics, all with quality of service 1:
- TOPIC/alerts                     each alert's JSON, not retained
- TOPIC/CAMERA/RULE/state          ON while an incident is open, else OFF; retained
- TOPIC/CAMERA/RULE/attributes     JSON of the newest alert; retained
- TOPIC/status                     online or offline; retained, `offline` by the broker itself when we die
- DISCOVERY_TOPIC/binary_sensor/ID/config   what Home Assistant needs to know of the sensor; retained

What is open, and which sensors there are, is asked of Redis at every connection and now and then: nothing that matters
is kept here alone. From there on the alerts say it, in their order.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import redis
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from sink.outputs.delivery import Output, Unreachable
from sink.outputs.discovery import description, discovery_topic, sensor_topic, status_topic
from sink.outputs.sensors import Sensor, Sensors, Standing
from sink.outputs.settings import MqttSettings
from wire.alerts import Alert
from wire.logs import redact
from wire.redis_link import RedisAway

QOS = 1  # at least once: the broker says that it has the message
# A connection without traffic is tried so often, and given up after one and a half times that (MQTT 3.1.1, 3.1.2.10).
KEEPALIVE_S = 30
# How often all states are said again. A predecessor's last word (its will, when its host died; an alert that it was
# frozen over) may come after ours.
SAY_AGAIN_S = 30.0


class Mqtt(Output):
    """The connection stays; one that failed in any way is left, and the next attempt makes another.

    Without `sensors` alerts are published and nothing else: some other process says the rest.
    """

    def __init__(self, settings: MqttSettings, sensors: Sensors | None = None) -> None:
        self._settings = settings
        self._alerts_only = sensors is None
        self._sensors = sensors if settings.discovery else None
        self._announced: set[Sensor] = set()
        self._open: dict[Sensor, set[str]] = {}  # incidents
        self._client: Client | None = None
        self._said_s = 0.0  # when all states were said last

    def deliver(self, alert: Alert, text: bytes) -> None:
        """Publish, and wait until the broker has it."""
        with self._attempt() as until_s:
            client = self._client or self._connect(until_s)
            # The sensor first: Redis must know of a new one, and where it refuses nothing is published again and again.
            sent = self._show(client, self._sensors, alert, text) if self._sensors is not None else []
            sent.append(client.publish(f"{self._settings.topic}/alerts", text, QOS))
            # Not `until_s`: what a new connection had to say may have taken longer.
            self._wait(sent, time.monotonic() + self._settings.timeout_s)
        self._note(alert)

    def refresh(self) -> bool:
        """Connect before the first alert; new sensors come, those of removed rules and cameras go, all states again."""
        with self._attempt() as until_s:
            client = self._client
            if client is None or not client.is_connected():
                self._drop()
                self._connect(until_s)
            else:
                self._say(client)
        return True

    def release(self) -> None:
        """Leave without a word: the other process has said that it is there."""
        self._drop()
        if self._sensors is not None:
            self._sensors.close()

    def close(self) -> None:
        """Say goodbye, so that the broker does not take us for dead."""
        client = self._client
        if client is not None and not self._alerts_only:
            with suppress(ValueError, RuntimeError):  # the broker finds out by itself
                goodbye = client.publish(status_topic(self._settings), "offline", QOS, retain=True)
                goodbye.wait_for_publish(1.0)
        self.release()

    @contextmanager
    def _attempt(self) -> Iterator[float]:
        """Until when it may take; whatever fails is Unreachable, and the connection is left."""
        try:
            yield time.monotonic() + self._settings.timeout_s
        except (redis.RedisError, RedisAway) as error:
            self._drop()
            raise Unreachable(f"Redis, which knows what is open: {redact(str(error))}") from None
        except (OSError, ValueError, RuntimeError) as error:
            self._drop()
            raise Unreachable(f"MQTT broker {self._settings.host}:{self._settings.port}: {error}") from None
        except Unreachable:
            self._drop()
            raise

    def _connect(self, until_s: float) -> Client:
        """Connect and tell of all sensors; raises what `_attempt` turns into Unreachable."""
        settings = self._settings
        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.connect_timeout = max(0.1, until_s - time.monotonic())
        if not self._alerts_only:
            client.will_set(status_topic(settings), "offline", QOS, retain=True)
        if settings.username:
            client.username_pw_set(settings.username, settings.password.get_secret_value())
        if settings.tls:
            ca_file = str(settings.ca_file) if settings.ca_file is not None else None
            client.tls_set_context(ssl.create_default_context(cafile=ca_file))
        answered = threading.Event()
        refusal: list[str] = []

        def on_connect(_client: Client, _data: object, _flags: object, code: ReasonCode, _: Properties | None) -> None:
            if code.is_failure:
                refusal.append(str(code))
            answered.set()

        client.on_connect = on_connect
        self._client = client  # from here on `_drop` ends its thread
        client.connect(settings.host, settings.port, KEEPALIVE_S)
        client.loop_start()
        if not answered.wait(max(0.0, until_s - time.monotonic())):
            raise Unreachable(f"MQTT broker {settings.host}:{settings.port} did not answer in {settings.timeout_s:g} s")
        if refusal:
            raise Unreachable(f"MQTT broker {settings.host}:{settings.port} refused us: {refusal[0]}")
        self._say(client, anew=True)
        return client

    def _drop(self) -> None:
        """Leave without a word; what it may still hold unsent is forgotten with it."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _wait(self, sent: Iterable[MQTTMessageInfo], until_s: float) -> None:
        for message in sent:
            if message.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise Unreachable(f"MQTT broker {self._settings.host}: the connection is lost")
            message.wait_for_publish(max(0.001, until_s - time.monotonic()))
            if not message.is_published():
                raise Unreachable(
                    f"MQTT broker {self._settings.host} did not confirm in {self._settings.timeout_s:g} s"
                )

    # ---- the sensors

    def _say(self, client: Client, *, anew: bool = False) -> None:
        """What has changed, and everything to a broker that we have just connected to."""
        again = anew or time.monotonic() - self._said_s >= SAY_AGAIN_S
        sent = []
        if again and not self._alerts_only:
            sent.append(client.publish(status_topic(self._settings), "online", QOS, retain=True))
        gone: set[Sensor] = set()
        if self._sensors is not None:
            standing = self._sensors.read(opened=again)
            if standing.opened is not None:
                self._open = self._open_of(standing.opened)
            wanted = self._wanted(standing)
            new, gone = wanted - standing.announced, standing.announced - wanted
            self._sensors.add(new)
            sent += [self._announce(client, one) for one in sorted(wanted if anew else new)]
            sent += [
                self._show_state(client, one, bool(self._open.get(one))) for one in sorted(wanted if again else new)
            ]
            sent += [message for one in sorted(gone) for message in self._erase(client, one)]
            self._announced = wanted
        for message in sent:  # there may be many: each has the time, and the first that fails ends it
            self._wait([message], time.monotonic() + self._settings.timeout_s)
        if self._sensors is not None:
            self._sensors.remove(gone)
        if again:
            self._said_s = time.monotonic()

    def _wanted(self, standing: Standing) -> set[Sensor]:
        """The sensors that there are to be."""
        found = {(camera, rule) for camera, rules in standing.rules.items() for rule in rules}
        # One of the system's own comes with its first alert, and goes with its camera.
        found |= {one for one in standing.announced if one[1].startswith("system.") and one[0] in standing.rules}
        is_open = {one for one, incidents in self._open.items() if incidents}
        return {one for one in found if self._settings.covers(*one)} | is_open

    def _open_of(self, alerts: Iterable[Alert]) -> dict[Sensor, set[str]]:
        found: dict[Sensor, set[str]] = {}
        for opened in alerts:
            if self._settings.concerns(opened):
                found.setdefault((opened.camera, opened.rule), set()).add(opened.incident)
        return found

    def _show(self, client: Client, sensors: Sensors, alert: Alert, text: bytes) -> list[MQTTMessageInfo]:
        """Show an alert on its sensor."""
        sensor = (alert.camera, alert.rule)
        sent = []
        if sensor not in self._announced:
            if alert.event == "closed":
                return []  # its rule or camera is gone, and the sensor with it
            sensors.add([sensor])
            self._announced.add(sensor)
            sent.append(self._announce(client, sensor))
        others = self._open.get(sensor, set()) - {alert.incident}
        sent.append(self._retain(client, sensor_topic(self._settings, *sensor, "attributes"), text))
        sent.append(self._show_state(client, sensor, alert.event != "closed" or bool(others)))
        return sent

    def _note(self, alert: Alert) -> None:
        incidents = self._open.setdefault((alert.camera, alert.rule), set())
        if alert.event == "closed":
            incidents.discard(alert.incident)
        else:
            incidents.add(alert.incident)

    def _announce(self, client: Client, sensor: Sensor) -> MQTTMessageInfo:
        return self._retain(client, discovery_topic(self._settings, *sensor), description(self._settings, *sensor))

    def _show_state(self, client: Client, sensor: Sensor, is_on: bool) -> MQTTMessageInfo:
        return self._retain(client, sensor_topic(self._settings, *sensor, "state"), "ON" if is_on else "OFF")

    def _erase(self, client: Client, sensor: Sensor) -> list[MQTTMessageInfo]:
        """A retained message without content is one no more."""
        kept = [sensor_topic(self._settings, *sensor, what) for what in ("state", "attributes")]
        return [self._retain(client, topic, b"") for topic in (discovery_topic(self._settings, *sensor), *kept)]

    def _retain(self, client: Client, topic: str, payload: str | bytes) -> MQTTMessageInfo:
        return client.publish(topic, payload, QOS, retain=True)
