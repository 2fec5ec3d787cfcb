"""Cards for tests: whole and valid, of figures that a pruned and quantised YOLOv5n has."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from trainer.card import Card, Measured, Score, Told

DIGEST = "0" * 64


def told() -> Told:
    """What a trainer tells."""
    return Told.model_validate(
        {
            "licence": "Apache-2.0",
            "data": {"name": "street", "licence": "Apache-2.0"},
            "training": {"network": "yolov5n", "start": "random", "recipe": "yolov5.pruned", "epochs": 3},
            "provenance": "made for a test",
        }
    )


def score(map50: float = 0.85, **changes: Any) -> Score:
    """A score on ONNX Runtime."""
    given = {"file": "m.onnx", "engine": "onnxruntime", "map50": map50, "map50_95": map50 / 2}
    return Score.model_validate({**given, "pictures": 10, "objects": 20, **changes})


def measured(*, map50: float = 0.85, baseline: float = 0.86, ms: float = 5.0, dense_ms: float = 15.0) -> Measured:
    """Figures that pass the gate's defaults."""
    return Measured.model_validate(
        {
            "made": datetime(2026, 1, 31, tzinfo=timezone.utc),
            "versions": {"sparsecam": "0.1.0"},
            "scores": [score(map50).model_dump()],
            "baseline": score(baseline, file="base.onnx").model_dump(),
            "baseline_sha256": DIGEST,
            "speed": {
                "engine": "onnxruntime",
                "processor": "a CPU",
                "num_cores": 1,
                "height": 416,
                "width": 416,
                "ms": ms,
                "dense": "dense.onnx",
                "dense_ms": dense_ms,
            },
            "dense_sha256": DIGEST,
            "size": {
                "file_bytes": 9,
                "compressed_bytes": 5,
                "zero_weights": 0.8,
                "quantised_nodes": 60,
                "nodes": 200,
            },
        }
    )


def card(name: str, sha256: str, classes: tuple[str, ...] = ("person",)) -> Card:
    """The card of a file with this digest."""
    return Card(
        name=name, sha256=sha256, classes=list(classes), image_size=(416, 416), told=told(), measured=measured()
    )
