"""`demo` needs nothing but itself: alerts as they happen, and at the end every frame accounted for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

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
        env={"XDG_CACHE_HOME": str(folder), "SPARSECAM__DETECTOR__WORKERS": "1", "REDIS_URL": "redis://127.0.0.1:1"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["captured"], summary["detected"], summary["dropped"]) == (40, 40, {})
    assert summary["alerts"] == {"bright": 1}  # 4 s of event time, one alert in 5 s
    assert summary["cameras"] == {"demo": "ended"}
    assert done.stderr.count("ALERT") == 1


def test_without_a_model_it_says_what_is_missing_and_shows_the_capture_path(sparsecam: Run) -> None:
    done = sparsecam("demo", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "MODEL=" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["captured"] > 20
    assert set(summary["dropped"]) == {"no_model"}
    assert balanced(summary)
    assert set(summary["cameras"]) == {"street-1", "street-2"}


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
        env={"XDG_CACHE_HOME": str(folder), "SPARSECAM__DETECTOR__ENGINE": "onnxruntime"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["captured"] == summary["detected"] > 0
    assert set(summary["alerts"]) == {"pistol"}
