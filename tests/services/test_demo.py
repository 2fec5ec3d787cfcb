"""`demo` needs nothing but itself: alerts as they happen, and at the end every frame accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ingest.sim.scene import LABELS, Street
from ingest.sim.scene_url import parse
from services.commands.demo import SIMULATED, Options, demo_config
from services.commands.demo_street import RULES, is_street, street_model
from services.config import load
from services.process import LogOptions
from services.sink import sink_plan
from sink.camera import CameraWork
from trainer.registry import add, shipped_folder
from wire.messages import Detection, DetectionRecord

Run = Callable[..., subprocess.CompletedProcess[str]]


def balanced(summary: dict[str, int | dict[str, int]]) -> bool:
    dropped = summary["dropped"]
    assert isinstance(dropped, dict)
    return summary["captured"] == summary["detected"] + sum(dropped.values()) + summary["in_flight"]


def test_a_file_is_detected_whole_and_raises_alerts(
    sparsecam: Run, folder: Path, moving_light: Path, bright_box_model: Path
) -> None:
    done = sparsecam(
        *("demo", "--source", str(moving_light), "--model", str(bright_box_model), "--json"),
        env={"SPARSECAM__DETECTOR__WORKERS": "1", "REDIS_URL": "redis://127.0.0.1:1"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["captured"], summary["detected"], summary["dropped"]) == (40, 40, {})
    assert summary["alerts"] == {"bright": 1}  # 4 s of event time, one alert in 5 s
    assert summary["cameras"] == {"demo": "ended"}
    assert done.stderr.count("ALERT") == 1


def test_without_a_model_of_the_street_it_says_what_is_missing_and_shows_the_capture_path(sparsecam: Run) -> None:
    if any(shipped_folder().glob("street-*.onnx")):
        pytest.skip("a model of the street is shipped")
    done = sparsecam("demo", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "MODEL=" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["captured"] > 20
    assert set(summary["dropped"]) == {"no_model"}
    assert balanced(summary)
    assert set(summary["cameras"]) == {"street-1", "street-2"}


def test_a_file_without_a_model_is_refused_at_once(sparsecam: Run, moving_light: Path) -> None:
    done = sparsecam("demo", "--source", str(moving_light))
    assert done.returncode == 78  # as any refused config
    assert "a file waits until a detector takes its frames" in done.stderr
    assert "MODEL=" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_source_of_ones_own_wants_a_model_of_its_own() -> None:
    assert [is_street(source) for source in ("", "sim://street?seed=4", "rtsp://camera/1", "video.mp4")] == [
        *(True, True, False, False)
    ]


def test_the_streets_model_is_found_and_raises_alerts_of_its_classes(
    sparsecam: Run, folder: Path, graphs: ModuleType, cards: ModuleType
) -> None:
    data = graphs.bright_box(folder / "light.onnx", label="bicycle").read_bytes()  # it sees the sky: a real detector
    card = cards.card("street-test", hashlib.sha256(data).hexdigest(), ("bicycle",))
    card.measured.speed.ms = 0.001  # faster than whatever is shipped
    add(folder / "models", data, card)
    done = sparsecam(
        *("demo", "--seconds", "3", "--json"),
        env={"SPARSECAM__DETECTOR__WORKERS": "1"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["detected"] > 0
    assert summary["alerts"].get("bicycle", 0) >= 2  # one a camera
    assert balanced(summary)


def test_a_changed_model_of_the_street_is_named_and_not_used(folder: Path, cards: ModuleType) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        entry = add(folder / "models", b"one", cards.card("street-test", hashlib.sha256(b"one").hexdigest()))
        entry.path.write_bytes(b"two")
        found, problems = street_model()
    assert found is None or found.name != "street-test"
    assert any("has changed" in problem for problem in problems)


def test_every_rule_of_the_street_raises_alerts_of_what_really_happens_there(tmp_path: Path) -> None:
    """The simulated cameras' own truth through the demo's config: within half a minute each rule has told something."""
    options = Options("", "street.onnx", None, 0, LogOptions())
    path = tmp_path / "sparsecam.yaml"
    path.write_text(yaml.safe_dump(demo_config(options, tmp_path, ["person", "bicycle", "car"], loops=False)))
    config = load(path, env={})
    told: set[tuple[str, str]] = set()
    for camera, url in SIMULATED.items():
        work = CameraWork(camera, dataclasses.replace(sink_plan(config), links=None))
        for record in street_truth(camera, url, seconds=30):
            told |= {(alert.camera, alert.rule) for alert in work.step(record) if alert.event == "opened"}
    assert told == {(camera, rule) for camera in SIMULATED for rule in RULES}


def street_truth(camera: str, url: str, *, seconds: int) -> Iterator[DetectionRecord]:
    """What a perfect detector at 5 detections a second would tell."""
    street = Street(parse(url))
    spec = street.spec
    for index in range(0, int(seconds * spec.fps), int(spec.fps // 5)):
        boxes = [one for one in street.truth(index) if one.visible > 0.5]
        detections = [Detection(one.label, LABELS.index(one.label), 0.9, tuple(map(float, one.box))) for one in boxes]
        time_us = 1_700_000_000_000_000 + round(index / spec.fps * 1e6)
        yield DetectionRecord(
            camera=camera,
            session="s",
            seq=index,
            order=index,
            broker="b",
            worker="w",
            model="m",
            event_us=time_us,
            captured_ns=time_us * 1000,
            dispatched_ns=time_us * 1000,
            inference_start_ns=time_us * 1000,
            inference_end_ns=time_us * 1000,
            source_height=spec.height,
            source_width=spec.width,
            detections=detections,
        )


def test_a_source_or_model_that_is_not_there_ends_it_in_words(sparsecam: Run, moving_light: Path) -> None:
    done = sparsecam("demo", "--source", str(moving_light), "--model", "gone.onnx")
    assert done.returncode != 0
    assert "gone.onnx" in done.stderr
    done = sparsecam("demo", "--source", "ftp://x")
    assert done.returncode != 0
    assert "unknown scheme" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_reference_model_is_known_by_its_content(sparsecam: Run, folder: Path, shared: Path) -> None:
    model = shared / "weights" / "reference-pistols-yolov5n-int8-hardswish.onnx"
    video = shared / "videos" / "pistol.mp4"
    if not (model.is_file() and video.is_file()):
        pytest.skip("the reference model and its video are not there")
    copy = folder / "renamed.onnx"
    copy.write_bytes(model.read_bytes())
    done = sparsecam(
        *("demo", "--source", str(video), "--model", str(copy), "--json", "--seconds", "1"),
        env={"SPARSECAM__DETECTOR__ENGINE": "onnxruntime"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["captured"] == summary["detected"] > 0
    assert set(summary["alerts"]) == {"pistol"}
