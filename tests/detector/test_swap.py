"""A deployed model brings its own names and sizes; the settings were written for another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog

from detector.detector import Detector
from detector.errors import EngineRefused, ModelError
from detector.model import read_model
from detector.settings import DetectorSettings
from detector.swap import load_deployed
from wire.deployment import ModelRef

Settings = Callable[..., DetectorSettings]


def deployed(path: Path, settings: DetectorSettings) -> Detector:
    return load_deployed(settings, ModelRef(path.name, str(path), read_model(path).sha256), 1)


@pytest.mark.parametrize(
    ("warm", "compiled", "skipped"),
    [
        ([(64, 64), (64, 96)], ["64x64", "64x96"], []),
        ([(384, 640), (64, 96)], ["64x96"], ["384, 640"]),
        ([(384, 640), (640, 640)], ["192x320"], ["384, 640", "640, 640"]),  # none fits: as where none is set
    ],
)
def test_warm_shapes_that_a_deployed_model_does_not_take_are_left_out(
    bright_box_model: Path, settings: Settings, warm: list[tuple[int, int]], compiled: list[str], skipped: list[str]
) -> None:
    with structlog.testing.capture_logs() as logs:
        detector = deployed(bright_box_model, settings(Path("other.onnx"), warm_shapes=warm))
    assert detector.describe()["compiled"] == compiled
    told = [entry["because"] for entry in logs if entry["event"] == "a shape is not compiled beforehand"]
    assert [text.partition(":")[0] for text in told] == [f"detector.warm_shapes [{shape}]" for shape in skipped]


def test_at_start_a_warm_shape_that_does_not_fit_is_an_error_that_names_the_setting(
    bright_box_model: Path, settings: Settings
) -> None:
    with pytest.raises(ModelError, match=r"^detector\.warm_shapes \[384, 640\]: a picture of 384x640; .* 320x320"):
        Detector.load(settings(bright_box_model, warm_shapes=[(384, 640)]))


def test_a_deployed_graph_of_one_size_is_run_at_that(graphs: ModuleType, tmp_path: Path, settings: Settings) -> None:
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96), frozen_height=96)
    wanted: dict[str, Any] = {"image_shape": (64, 96), "rectangular": False, "batch": 1}
    with structlog.testing.capture_logs() as logs:
        detector = deployed(path, settings(Path("other.onnx"), **wanted))
    assert (detector.spec.height, detector.spec.width) == (96, 96)
    assert any("detector.image_shape is not followed" in entry["event"] for entry in logs)
    tried = r"outside their grid cells.*tried at detector\.image_shape \[64, 96\]; its own is \[96, 96\]"
    with pytest.raises(EngineRefused, match=tried):
        Detector.load(settings(path, **wanted))


def test_a_deployed_graph_of_any_size_is_run_at_the_configs(bright_box_model: Path, settings: Settings) -> None:
    detector = deployed(bright_box_model, settings(Path("other.onnx"), image_shape=(96, 128), batch=1))
    assert (detector.spec.height, detector.spec.width) == (96, 128)
