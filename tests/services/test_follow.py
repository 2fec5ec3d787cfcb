"""A worker's part in deployments, without Redis: whose load it was that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from detector.detector import Detector
from detector.errors import ModelError
from detector.model import read_model
from detector.worker import Worker
from services.config import Config, load
from services.follow import Follower, capacity
from services.model_names import detector_settings
from services.rollout import advance
from wire.broker import Broker
from wire.consumer import WorkSource
from wire.deployment import Deployment, ModelRef


@pytest.fixture
def config(bright_box_model: Path, tmp_path: Path) -> Config:
    path = tmp_path / "sparsecam.yaml"
    detector = {"model": str(bright_box_model), "engine": "onnxruntime"}
    path.write_text(yaml.safe_dump({"detector": detector, "registry": {"folder": str(tmp_path / "registry")}}))
    return load(path, {})


@pytest.fixture
def worker(config: Config) -> Iterator[Worker]:
    """With the config's own model and room for as much as batches of four want; nobody sends it anything."""
    detector = Detector.load(detector_settings(config), 1)
    broker = Broker("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", max_age_ms=500)
    source = WorkSource(broker.endpoints[1], detector.spec, capacity=8, stuck_s=60, on_stuck=lambda _: None)
    try:
        yield Worker(detector, source, max_age_ms=500, compile_s=60, observe=lambda *_: None)
    finally:
        source.close()
        broker.close()


@pytest.mark.parametrize(("failing", "counts"), [("earlier", False), ("wanted", True)])
def test_only_its_own_models_failure_counts_against_a_deployment(
    graphs: ModuleType,
    config: Config,
    worker: Worker,
    tmp_path: Path,
    wait_until: Callable[..., None],
    failing: str,
    counts: bool,
) -> None:
    follower = Follower(config, worker, "w1", "")
    other = graphs.bright_box(tmp_path / "other.onnx")
    wanted = ModelRef("other.onnx", str(other), "wanted")
    deployment = Deployment(id="second", wanted=wanted, phase="loading", canary="w1", begun_us=1, since_us=1)

    def fails() -> Detector:
        raise ModelError("cut short")

    follower._beside.start(failing, fails)  # as it was asked for when that model was wanted
    wait_until(lambda: not follower._beside.loading)
    follower._note_loaded(deployment)
    report = follower._report(10, deployment)
    assert (advance(deployment, {"w1": report}, 11).phase == "returning") == counts


def test_a_model_of_the_same_input_that_infers_fewer_at_once_holds_fewer_frames(config: Config, worker: Worker) -> None:
    follower = Follower(config, worker, "w1", "")
    one_by_one = Detector.load(detector_settings(config), 1)
    one_by_one.batch = 1
    assert one_by_one.spec == worker.asked_for
    worker.change(one_by_one)
    worker._take_up()
    follower._settle()
    worker._take_up()
    assert worker.capacity == capacity(config, one_by_one) < 8


def test_a_deployed_model_is_taken_up_when_the_configs_own_has_left_the_registry(
    config: Config, worker: Worker, graphs: ModuleType, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    gone = config.model_copy(update={"detector": config.detector.model_copy(update={"model": "night"})})
    other = graphs.bright_box(tmp_path / "other.onnx")
    wanted = ModelRef("other.onnx", str(other), read_model(other).sha256)
    follower = Follower(gone, worker, "w1", "")
    deployment = Deployment(id="d", wanted=wanted, phase="loading", canary="w1", begun_us=1, since_us=1)
    follower._follow(deployment)
    wait_until(lambda: not follower._beside.loading, 60)
    follower._follow(deployment)
    worker._take_up()
    assert worker.detector.model.sha256 == wanted.sha256
    assert not follower.trouble
    # Back to what is gone: said, and counted as a model that cannot be loaded.
    follower._follow(deployment)
    follower._kept.clear()  # as in a worker that began with the deployed model
    returning = Deployment(id="d", wanted=wanted, phase="returning", canary="w1", begun_us=1, since_us=2)
    follower._follow(returning)
    wait_until(lambda: not follower._beside.loading, 60)
    follower._follow(returning)
    assert "no model 'night'" in follower.trouble


def test_a_worker_goes_on_following_after_an_error_that_nobody_foresaw(
    config: Config, worker: Worker, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    monkeypatch.setattr("services.follow.AWAY_S", 0.01)
    follower = Follower(config, worker, "w1", "")
    looks = []

    def tick() -> float:
        looks.append(1)
        raise KeyError("what nobody foresaw")

    monkeypatch.setattr(follower, "_tick", tick)
    follower.start()
    wait_until(lambda: len(looks) > 2)
    follower.stop()
