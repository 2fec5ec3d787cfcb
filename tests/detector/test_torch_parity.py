"""Training's own network and its ONNX export find the same objects on real pictures, in every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector import engines
from detector.detector import Detector
from detector.settings import DetectorSettings
from wire.messages import Detection

Found = list[list[Detection]]
Detect = Callable[[Path, str, tuple[int, int]], Found]

LEAST_SCORE = 0.3  # above the threshold by more than scores may differ: a box just on it may be in one list only
# One shape is enough to see a difference between engines; the second is for `make test-all`.
SHAPES = (pytest.param((416, 416), marks=pytest.mark.slow), (320, 416))


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    if "torch" not in engines.installed():
        pytest.skip("torch is not installed here")
    return shared / "weights/yolov5n.pt"


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int]], Path]:
    """The checkpoint as ONNX at a shape (height, width), by PyTorch's older exporter."""
    import torch

    from trainer.checkpoint import build, read_checkpoint

    network = build(read_checkpoint(checkpoint.read_bytes(), checkpoint.name))
    folder = tmp_path_factory.mktemp("exported")

    def make(shape: tuple[int, int]) -> Path:
        path = folder / f"{shape[0]}x{shape[1]}.onnx"
        if not path.exists():
            picture = (torch.zeros(1, 3, *shape),)
            torch.onnx.export(network, picture, str(path), opset_version=13, dynamo=False, input_names=["images"])
        return path

    return make


@pytest.fixture(scope="module")
def detect(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Detect:
    """Detections of a model on an engine, on every 8th picture; each combination runs once."""
    paths = sorted((shared / "datasets/coco128/images/train2017").iterdir())[::8]
    pictures = [cv2.imread(str(path)) for path in paths]
    cache = tmp_path_factory.mktemp("verdicts")
    known: dict[tuple[Path, str, tuple[int, int]], Found] = {}

    def run(model: Path, engine: str, shape: tuple[int, int]) -> Found:
        key = model, engine, shape
        if key not in known:
            facts = {"model": str(model), "engine": engine, "image_shape": shape, "batch": 1, "cache_dir": cache}
            detector = Detector.load(DetectorSettings.model_validate({**facts, "rectangular": False}))
            known[key] = [detector.detect_image(picture) for picture in pictures]
        return known[key]

    return run


def iou(a: Detection, b: Detection) -> float:
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    both = max(width, 0) * max(height, 0)
    areas = [(d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) for d in (a, b)]
    return both / (sum(areas) - both)


@pytest.mark.parametrize("shape", SHAPES, ids=["416x416", "320x416"])
def test_a_checkpoint_finds_what_its_export_finds(
    checkpoint: Path, export: Callable[..., Path], detect: Detect, engine: str, shape: tuple[int, int]
) -> None:
    ours, theirs = detect(checkpoint, "torch", shape), detect(export(shape), engine, shape)
    overlaps, scores = [], []
    for here, there in zip(ours, theirs, strict=True):
        for found, others in ((here, there), (there, here)):
            for detection in found:
                if detection.score >= LEAST_SCORE:
                    same = [other for other in others if other.class_id == detection.class_id]
                    best = max(same, key=lambda other: iou(detection, other), default=None)
                    overlaps.append(iou(detection, best) if best else 0.0)
                    scores.append(abs(detection.score - best.score) if best else 1.0)
    assert len(overlaps) >= 60
    assert np.min(overlaps) >= 0.98
    assert np.max(scores) <= 0.02
