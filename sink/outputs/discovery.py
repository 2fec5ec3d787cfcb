"""How Home Assistant is told of a sensor (its documentation, "MQTT discovery" and "MQTT binary sensor")."""

from __future__ import annotations

import hashlib
import json
import re

from sink.outputs.settings import MqttSettings
from wire.metrics import package_version


def status_topic(settings: MqttSettings) -> str:
    """Where it stands whether we are there: online or offline."""
    return f"{settings.topic}/status"


def sensor_topic(settings: MqttSettings, camera: str, rule: str, what: str) -> str:
    """Where a sensor's `state` or its `attributes` stand."""
    return f"{settings.topic}/{camera}/{rule}/{what}"


def discovery_topic(settings: MqttSettings, camera: str, rule: str) -> str:
    """Where Home Assistant looks for the description."""
    return f"{settings.discovery_topic}/binary_sensor/{sensor_id(camera, rule)}/config"


def description(settings: MqttSettings, camera: str, rule: str) -> str:
    """The description of a sensor, as JSON."""
    id_ = sensor_id(camera, rule)
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
                "identifiers": [sensor_id(camera)],
                "name": camera,
                "manufacturer": "Sparsecam",
                "sw_version": package_version(),
            },
            "origin": {"name": "sparsecam", "sw_version": package_version()},
        }
    )


def sensor_id(*names: str) -> str:
    """An id of the characters that Home Assistant admits; no two different sets of names share one."""
    text = "_".join(["sparsecam", *names])
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    # "a_b", "c" and "a", "b_c" look the same, so the names themselves are part of it.
    return f"{plain}_{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:6]}"
