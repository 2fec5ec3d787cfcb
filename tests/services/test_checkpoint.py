"""The commands take a checkpoint where they take an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from detector import engines

pytestmark = pytest.mark.skipif("torch" not in engines.installed(), reason="torch is not installed here")

Sparsecam = Callable[..., CompletedProcess[str]]


@pytest.fixture
def public(shared: Path) -> str:
    return str(shared / "weights/yolov5n.pt")


def test_annotate_draws_what_a_checkpoint_finds(
    sparsecam: Sparsecam, public: str, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for path in sorted((shared / "datasets/coco128/images/train2017").iterdir())[:2]:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    options = ("--engine", "torch", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--json")
    done = sparsecam("annotate", public, *options, "--image-shape", "320", "320")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["engine"], result["frames"]) == ("torch", 2)
    assert sum(result["detections"].values()) > 0


def test_bench_engine_measures_a_checkpoint_on_a_rectangle(sparsecam: Sparsecam, public: str) -> None:
    options = ("--image-shape", "128", "192", "--seconds", "0.3", "--warmup", "0", "--num-cores", "1", "--json")
    done = sparsecam("bench", "engine", public, *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [row["engine"] for row in document["engines"]] == ["torch"]
    assert document["engines"][0]["runs"] > 0
    assert (document["model"]["nodes"], document["model"]["input"]) == (None, [1, 3, 128, 192])


def test_bench_engine_refuses_a_checkpoint_on_another_engine(sparsecam: Sparsecam, public: str) -> None:
    done = sparsecam("bench", "engine", public, "--engine", "onnxruntime")
    assert done.returncode != 0
    assert "Engines that can: torch" in done.stderr and "Traceback" not in done.stderr


def test_prepare_refuses_a_checkpoint(sparsecam: Sparsecam, public: str, tmp_path: Path) -> None:
    done = sparsecam("models", "prepare", public, str(tmp_path / "out.onnx"))
    assert done.returncode != 0
    assert "only ONNX can be prepared: export it first" in done.stderr
    assert not (tmp_path / "out.onnx").exists()
