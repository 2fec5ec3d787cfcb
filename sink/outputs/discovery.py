"""How Home Assistant is told of a sensor (its documentation, "MQTT discovery" and "MQTT binary sensor")."""

from __future__ import annotations

import hashlib
import json
import re

from sink.outputs.settings import DEFAULT_TOPIC, MqttSettings
from wire.metrics import package_version


def status_topic(settings: MqttSettings) -> str:
    """Where it stands whether we are there: online or offline."""
    return f"{settings.topic}/status"


def sensor_topic(settings: MqttSettings, camera: str, rule: str, what: str) -> str:
    """Where a sensor's `state` or its `attributes` stand."""
    return f"{settings.topic}/{camera}/{rule}/{what}"


def discovery_topic(settings: MqttSettings, camera: str, rule: str) -> str:
    """Where Home Assistant looks for the description."""
    return f"{settings.discovery_topic}/binary_sensor/{sensor_id(camera, rule, topic=settings.topic)}/config"


def description(settings: MqttSettings, camera: str, rule: str) -> str:
    """The description of a sensor, as JSON."""
    id_ = sensor_id(camera, rule, topic=settings.topic)
    return json.dumps(
        {
            "name": rule,
            "unique_id": id_,
            # Since 2025.10; its older name, `object_id`, is gone since 2026.4.
            "default_entity_id": f"binary_sensor.{id_}",
            "state_topic": sensor_topic(settings, camera, rule, "state"),
            "json_attributes_topic": sensor_topic(settings, camera, rule, "attributes"),
            "availability_topic": status_topic(settings),
            "device_class": "problem" if rule.startswith("system.") else "motion",
            "device": {
                "identifiers": [sensor_id(camera, topic=settings.topic)],
                "name": camera,
                "manufacturer": "Sparsecam",
                "sw_version": package_version(),
            },
            "origin": {"name": "sparsecam", "sw_version": package_version()},
        }
    )


def sensor_id(*names: str, topic: str = DEFAULT_TOPIC) -> str:
    """An id of the characters that Home Assistant admits; no two different sets of names share one.

    Nor do two topics: units on one broker may have cameras and rules of the same names.
    """
    text = "_".join(["sparsecam", *names])
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    # "a_b", "c" and "a", "b_c" look the same, so the names themselves are part of it. The default topic is not: ids
    # had none in them once, and Home Assistant would take a new id for a new sensor.
    hashed = json.dumps(names if topic == DEFAULT_TOPIC else [topic, names])
    return f"{plain}_{hashlib.sha256(hashed.encode()).hexdigest()[:6]}"
