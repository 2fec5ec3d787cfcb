"""A latency is measured by one clock, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.config import Config
from services.sink import sink_settings
from sink.camera import Plan
from sink.delivery import CameraState
from sink.watched import WatchedCamera
from wire.messages import DetectionRecord


@pytest.mark.parametrize(
    ("workers", "said", "measured"),
    [("", None, True), ("tcp://127.0.0.1:5000", None, False), ("tcp://127.0.0.1:5000", True, True), ("", False, False)],
)
def test_alerts_have_a_latency_where_workers_have_the_sinks_clock(
    workers: str, said: bool | None, measured: bool, detection_record: Callable[..., DetectionRecord]
) -> None:
    rule = {"kind": "presence", "labels": ["pistol"], "confirm_frames": 1}
    config = Config.model_validate(
        {"link": {"workers": workers}, "sink": {"same_host": said}, "rules": {"armed": rule}}
    )
    camera = WatchedCamera("door", Plan(config.rules), sink_settings(config), CameraState())
    alerts = [alert for seq in range(5) for alert in camera.step(detection_record(seq, "pistol"))]
    assert alerts
    assert [alert.latency_ms is not None for alert in alerts] == [measured] * len(alerts)
