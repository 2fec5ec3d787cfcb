"""MQTT: every alert as JSON, and each rule of each camera as a sensor that Home Assistant finds by itself.

Topics, all with quality of service 1:
- TOPIC/alerts                     each alert's JSON, not retained
- TOPIC/CAMERA/RULE/state          ON while an incident is open, else OFF; retained
- TOPIC/CAMERA/RULE/attributes     JSON of the newest alert; retained
- TOPIC/status                     online or offline; retained, `offline` by the broker itself when we die
- DISCOVERY_TOPIC/binary_sensor/ID/config   what Home Assistant needs to know of the sensor; retained
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from sink.outputs.delivery import Unreachable
from sink.outputs.settings import MqttSettings
from wire.alerts import Alert
from wire.metrics import package_version

QOS = 1  # at least once: the broker says that it has the message
# A connection without traffic is tried so often, and given up after one and a half times that (MQTT 3.1.1, 3.1.2.10).
KEEPALIVE_S = 30
# Open incidents remembered a sensor; one whose end is never heard of must not fill the memory.
OPEN_MOST = 1000


class Mqtt:
    """An Output. The connection stays; one that failed in any way is left, and the next attempt makes another."""

    def __init__(self, settings: MqttSettings, sensors: Iterable[tuple[str, str]] = ()) -> None:
        self._settings = settings
        self._sensors = list(dict.fromkeys(sensors))  # (camera, rule)
        self._open: dict[tuple[str, str], dict[str, None]] = {}  # incidents, the oldest first
        self._client: Client | None = None

    def deliver(self, alert: Alert, text: bytes) -> None:
        """Publish, and wait until the broker has it."""
        until_s = time.monotonic() + self._settings.timeout_s
        sensor = (alert.camera, alert.rule)
        try:
            client = self._client or self._connect(until_s)
            topic = self._settings.topic
            sent = [client.publish(f"{topic}/alerts", text, QOS)]
            if self._settings.discovery:
                if sensor not in self._sensors:
                    self._sensors.append(sensor)
                    sent.append(self._announce(client, *sensor))
                state = "ON" if self._opened_after(alert) else "OFF"
                sent.append(client.publish(f"{self._base(*sensor)}/attributes", text, QOS, retain=True))
                sent.append(client.publish(f"{self._base(*sensor)}/state", state, QOS, retain=True))
            self._wait(sent, until_s)
        except (OSError, ValueError, RuntimeError) as error:
            self._drop()
            raise Unreachable(f"MQTT broker {self._settings.host}:{self._settings.port}: {error}") from None
        except Unreachable:
            self._drop()
            raise
        self._note(alert)

    def close(self) -> None:
        """Say goodbye, so that the broker does not take us for dead."""
        client, self._client = self._client, None
        if client is None:
            return
        with suppress(ValueError, RuntimeError):  # the broker finds out by itself
            client.publish(self._status_topic, "offline", QOS, retain=True).wait_for_publish(1.0)
        client.disconnect()
        client.loop_stop()

    def _connect(self, until_s: float) -> Client:
        """Connect and tell of all sensors; raises OSError, ValueError or Unreachable."""
        settings = self._settings
        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.connect_timeout = max(0.1, until_s - time.monotonic())
        client.will_set(self._status_topic, "offline", QOS, retain=True)
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
        sent = [client.publish(self._status_topic, "online", QOS, retain=True)]
        if settings.discovery:
            sent += [self._announce(client, camera, rule) for camera, rule in self._sensors]
        self._wait(sent, until_s)
        return client

    def _drop(self) -> None:
        """Leave without a word; what it may still hold unsent is forgotten with it."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _wait(self, sent: list[MQTTMessageInfo], until_s: float) -> None:
        for message in sent:
            if message.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise Unreachable(f"MQTT broker {self._settings.host}: the connection is lost")
            message.wait_for_publish(max(0.001, until_s - time.monotonic()))
            if not message.is_published():
                raise Unreachable(
                    f"MQTT broker {self._settings.host} did not confirm in {self._settings.timeout_s:g} s"
                )

    def _announce(self, client: Client, camera: str, rule: str) -> MQTTMessageInfo:
        """Home Assistant's description of a sensor (its documentation, "MQTT discovery" and "MQTT binary sensor")."""
        id_ = sensor_id(camera, rule)
        config = {
            "name": rule,
            "unique_id": id_,
            "object_id": id_,
            "state_topic": f"{self._base(camera, rule)}/state",
            "json_attributes_topic": f"{self._base(camera, rule)}/attributes",
            "availability_topic": self._status_topic,
            "device_class": "problem" if rule.startswith("system.") else "motion",
            "device": {
                "identifiers": [sensor_id(camera)],
                "name": camera,
                "manufacturer": "Sparsecam",
                "sw_version": package_version(),
            },
            "origin": {"name": "sparsecam", "sw_version": package_version()},
        }
        topic = f"{self._settings.discovery_topic}/binary_sensor/{id_}/config"
        return client.publish(topic, json.dumps(config), QOS, retain=True)

    @property
    def _status_topic(self) -> str:
        return f"{self._settings.topic}/status"

    def _base(self, camera: str, rule: str) -> str:
        return f"{self._settings.topic}/{camera}/{rule}"

    def _opened_after(self, alert: Alert) -> bool:
        """Whether an incident of the sensor is open once this alert is told."""
        known = self._open.get((alert.camera, alert.rule), {})
        return alert.event != "closed" or bool(known.keys() - {alert.incident})

    def _note(self, alert: Alert) -> None:
        known = self._open.setdefault((alert.camera, alert.rule), {})
        if alert.event == "closed":
            known.pop(alert.incident, None)
        else:
            known[alert.incident] = None
            if len(known) > OPEN_MOST:
                del known[next(iter(known))]


def sensor_id(*names: str) -> str:
    """An id of the characters that Home Assistant admits; no two different sets of names share one."""
    text = "_".join(["sparsecam", *names])
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    # "a_b", "c" and "a", "b_c" look the same, so the names themselves are part of it.
    return f"{plain}_{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:6]}"
