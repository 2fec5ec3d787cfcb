"""A worker's part in deployments, without Redis: whose load it was that failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from detector.detector import Detector
from detector.errors import ModelError
from detector.worker import Worker
from services.config import load
from services.follow import Follower
from services.model_names import detector_settings
from services.rollout import advance
from wire.broker import Broker
from wire.consumer import WorkSource
from wire.deployment import Deployment, ModelRef


@pytest.mark.parametrize(("failing", "counts"), [("earlier", False), ("wanted", True)])
def test_only_its_own_models_failure_counts_against_a_deployment(
    graphs: ModuleType,
    bright_box_model: Path,
    tmp_path: Path,
    wait_until: Callable[..., None],
    failing: str,
    counts: bool,
) -> None:
    path = tmp_path / "sparsecam.yaml"
    path.write_text(yaml.safe_dump({"detector": {"model": str(bright_box_model), "engine": "onnxruntime"}}))
    config = load(path, {})
    detector = Detector.load(detector_settings(config), 1)
    broker = Broker("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", max_age_ms=500)
    source = WorkSource(broker.endpoints[1], detector.spec, capacity=2, stuck_s=60, on_stuck=lambda _: None)
    worker = Worker(detector, source, max_age_ms=500, compile_s=60, observe=lambda *_: None)
    follower = Follower(config, worker, "w1", "")
    other = graphs.bright_box(tmp_path / "other.onnx")
    wanted = ModelRef("other.onnx", str(other), "wanted")
    deployment = Deployment(id="second", wanted=wanted, phase="loading", canary="w1", begun_us=1, since_us=1)

    def fails() -> Detector:
        raise ModelError("cut short")

    try:
        follower._beside.start(failing, fails)  # as it was asked for when that model was wanted
        wait_until(lambda: not follower._beside.loading)
        follower._note_loaded(deployment)
        report = follower._report(10, deployment)
        assert (advance(deployment, {"w1": report}, 11).phase == "returning") == counts
    finally:
        source.close()
        broker.close()
