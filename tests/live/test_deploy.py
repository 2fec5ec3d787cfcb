"""Models are deployed to real workers under load: no frame is lost, and a bad one goes back by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ingest.sim.file_source import FileSource
from ingest.sim.rtsp_server import RtspServer
from wire.deployment import WorkerReport, read_standing
from wire.messages import DetectionRecord, decode, decoder
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import detections_key
from wire.valkey import embedded_url


def models(one: Any, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """`sparsecam models ...` on the site: exit code, JSON printed, standard error."""
    command = [sys.executable, "-m", "services.cli", "models", *arguments, "--config", str(one.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def workers(one: Any) -> list[WorkerReport]:
    """Those that live."""
    link = Link(connect(RedisSettings(), embedded_url(one.runtime / "valkey")))
    standing = read_standing(link)
    link.close()
    return [report for report in standing.reports.values() if report.is_fresh(standing.now_us)]


def running(one: Any) -> set[str]:
    """The model files of the workers that report."""
    return {report.model for report in workers(one)}


def newest(one: Any, camera: str) -> DetectionRecord:
    with one.redis() as client:
        ((_, fields),) = client.xrevrange(detections_key(camera), count=1)
    return decode(decoder(DetectionRecord), fields[b"d"])


@pytest.fixture
def busy(site: Callable[..., Any], clip: Callable[..., Path], wait_until: Callable[..., None]) -> Iterator[Any]:
    """A site of two workers, kept busy by a film without end, and a live camera.

    Not at full speed, which takes all cores from the tests beside and proves no more.
    """
    with RtspServer(FileSource(clip(100, fps=15, gop=15))) as camera:
        film = {"source": str(clip(300, fps=80)), "loop": True, "pace": "realtime"}
        one = site(cameras={"film": film, "live": {"source": camera.url}}, rules={"light": {"labels": ["bright"]}})
        wait_until(lambda: one.cameras().get("live", {}).get("detected", 0) > 15, timeout_s=60)
        wait_until(lambda: one.cameras()["film"]["detected"] > 100, timeout_s=60)
        wait_until(lambda: sum(report.healthy() for report in one.reports("detector")) == 2, timeout_s=60)
        yield one


def all_detected(one: Any, law: Callable[[dict[str, Any]], bool]) -> bool:
    """After the site has stopped: every frame of the film was detected, and the live camera's books balance."""
    cameras = one.cameras()
    film, live = cameras["film"], cameras["live"]
    assert film["captured"] == film["detected"] > 500, film
    assert law(live) and live["in_flight"] == 0, live
    assert not {"dropped_worker_lost", "dropped_inference_error", "dropped_bad_frame"} & set(live), live
    return True


def test_a_model_of_another_size_is_deployed_without_losing_a_frame_and_taken_back(
    busy, graphs: ModuleType, tmp_path: Path, law, wait_until
) -> None:
    other = graphs.bright_box(tmp_path / "other.onnx", image_size=(192, 256))
    code, told, errors = models(busy, "deploy", str(other), "--canary-s", "2", "--max-latency-ratio", "20")
    assert (code, told["outcome"], told["phase"]) == (0, "deployed", "settled"), (told, errors)
    assert min(told["comparison"]["canary"]["frames"], told["comparison"]["others"]["frames"]) >= 50
    assert running(busy) == {"other.onnx"}
    record = newest(busy, "film")
    assert record.model == "other.onnx"
    (box,) = [found.box for found in record.detections]
    assert box[1] == pytest.approx(60, abs=4) and box[3] == pytest.approx(120, abs=4), "in pixels of the source"
    pid = busy.kill("detector")
    (killed,) = [report.worker for report in workers(busy) if f"-{pid}-" in report.worker]
    # The dead one is taken for alive for five seconds more.
    wait_until(lambda: killed not in {report.worker for report in workers(busy)}, timeout_s=30)
    wait_until(lambda: len(workers(busy)) == 2, timeout_s=30)
    told = models(busy, "deployed")[1]
    # A worker that starts later runs the deployed model.
    assert {worker["model"] for worker in told["workers"]} == running(busy) == {"other.onnx"}, told
    code, told, errors = models(busy, "rollback")
    assert code == 0 and told["current"] is None and running(busy) == {"bright.onnx"}, (told, errors)
    assert models(busy, "rollback")[0] == 78, "there is nothing before that"
    busy.stop()
    film = busy.cameras()["film"]
    assert film["captured"] == film["detected"] > 500 and law(busy.cameras()["live"])


def test_bad_models_go_back_by_themselves_and_cost_no_frame(
    busy, graphs: ModuleType, bad_models: dict[str, Path], law
) -> None:
    for name, reason, *options in (
        ("refusing", "inference failed on"),
        ("slow", "too slow: median"),
        ("classifier", "unknown detection head", "--force"),  # it names no classes
    ):
        code, told, errors = models(busy, "deploy", str(bad_models[name]), "--canary-s", "2", *options)
        assert (code, told["outcome"], told["phase"]) == (1, "rolled back", "settled"), (name, told, errors)
        assert reason in told["reason"], told
        assert running(busy) == {"bright.onnx"}
    code, _, errors = models(busy, "deploy", str(bad_models["classifier"]))
    assert code == 78 and "does not name its classes" in errors and "bright" in errors
    code, _, errors = models(busy, "deploy", str(bad_models["cut"]))
    assert code == 78 and "cut short" in errors
    code, _, errors = models(busy, "deploy", str(bad_models["strange"]))
    assert code == 78 and "no class 'bright'" in errors and "--force" in errors
    busy.stop()
    assert all_detected(busy, law)


def test_a_canary_that_dies_is_the_models_fault(busy, graphs: ModuleType, tmp_path: Path, law) -> None:
    other = graphs.bright_box(tmp_path / "other.onnx", image_size=(192, 256))
    command = [sys.executable, "-m", "services.cli", "models", "deploy", str(other), "--canary-s", "600"]
    with subprocess.Popen([*command, "--config", str(busy.path)], stdout=subprocess.PIPE, text=True) as deploying:
        assert deploying.stdout is not None
        try:
            for line in deploying.stdout:
                if "detects with it" in line:
                    os.kill(int(line.split()[0].split("-")[-2]), signal.SIGKILL)
            assert deploying.wait(60) == 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                deploying.kill()
    told = models(busy, "deployed")[1]["deployment"]
    assert told["outcome"] == "rolled back" and "died or hung" in told["reason"], told
    assert running(busy) == {"bright.onnx"}
    busy.stop()
    film = busy.cameras()["film"]
    assert film["captured"] == film["detected"] and law(busy.cameras()["live"])


@pytest.fixture
def bad_models(graphs: ModuleType, tmp_path: Path) -> dict[str, Path]:
    cut = graphs.bright_box(tmp_path / "cut.onnx")
    cut.write_bytes(cut.read_bytes()[:-200])
    return {
        "refusing": graphs.bright_box(tmp_path / "refusing.onnx", refuses_light=True),
        "slow": graphs.bright_box(tmp_path / "slow.onnx", slowness=700),
        "classifier": graphs.classifier(tmp_path / "classifier.onnx"),
        "strange": graphs.bright_box(tmp_path / "strange.onnx", label="cat"),
        "cut": cut,
    }


@pytest.mark.slow
def test_the_reference_models_take_each_others_place(site, shared: Path, tmp_path: Path, law, wait_until) -> None:
    pytest.importorskip("deepsparse")
    first, second = tmp_path / "silu.onnx", tmp_path / "hardswish.onnx"
    for path in (first, second):
        path.write_bytes((shared / "weights" / f"reference-pistols-yolov5n-int8-{path.stem}.onnx").read_bytes())
    (video,) = sorted((shared / "videos").glob("*.mp4"))[:1]
    film = {"source": str(video), "loop": True, "pace": "realtime"}
    # One worker, and one trial a model: each more compiles for six to thirteen seconds. What two do is tested above.
    quick = {"batch": 1, "rectangular": False, "workers": 1}
    one = site(cameras={"film": film}, detector={"model": str(first), "engine": "deepsparse", **quick})
    wait_until(lambda: one.cameras().get("film", {}).get("detected", 0) > 100, timeout_s=120)
    code, told, errors = models(one, "deploy", str(second), "--canary-s", "5")
    assert (code, told["outcome"]) == (0, "deployed"), (told, errors)
    print(json.dumps(told["comparison"]))
    assert running(one) == {"hardswish.onnx"}
    assert newest(one, "film").model == "hardswish.onnx"
    code, told, _ = models(one, "rollback")
    assert code == 0 and running(one) == {"silu.onnx"}
    one.stop()
    film = one.cameras()["film"]
    assert film["captured"] == film["detected"] and law(film)
