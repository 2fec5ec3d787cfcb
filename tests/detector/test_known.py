"""Models that carry no class names are known by their weights, whatever their file was renamed or reshaped to."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from detector.known import known_labels
from detector.model import parse_model


@pytest.mark.parametrize("kind", ["silu", "hardswish"])
def test_the_reference_models_detect_pistols(shared: Path, kind: str) -> None:
    model = onnx.load(str(shared / "weights" / f"reference-pistols-yolov5n-int8-{kind}.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 224
    assert parse_model(model.SerializeToString(), "renamed.onnx").labels == {0: "pistol"}


def test_other_weights_are_not_known(bright_box_model: Path) -> None:
    assert known_labels(onnx.load(str(bright_box_model)).graph.initializer) is None
