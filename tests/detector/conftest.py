"""Fixtures of the detector room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest

from detector import engines
from detector.settings import DetectorSettings
from wire.messages import FrameHeader

Image = np.ndarray[Any, Any]

# A busy machine is no failure of a property.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture
def settings(verdict_dir: Path) -> Callable[..., DetectorSettings]:
    """DetectorSettings of a model on ONNX Runtime, which starts quickest, with whatever else a test wants."""

    def make(model: Path, **changes: Any) -> DetectorSettings:
        return DetectorSettings(**{"model": str(model), "engine": "onnxruntime", "cache_dir": verdict_dir, **changes})

    return make


@pytest.fixture
def cells_model(graphs: ModuleType, tmp_path: Path) -> Path:
    """A real, quick ONNX detector of 320x320 and less that may infer in batches: see `graphs.cells`."""
    path: Path = graphs.cells(tmp_path / "cells.onnx", image_size=(320, 320))
    return path


@pytest.fixture(params=[kind.name for kind in engines.KINDS.values() if kind.reads == "onnx"])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine that runs ONNX, in turn."""
    name: str = request.param
    if name not in engines.installed():
        pytest.skip(f"{name} is not installed here")
    return name


@pytest.fixture
def deepsparse() -> str:
    if "deepsparse" not in engines.installed():
        pytest.skip("deepsparse is not installed here")
    return "deepsparse"


@pytest.fixture(scope="session")
def header() -> Callable[..., FrameHeader]:
    """A FrameHeader of a letterbox of height x width that is its own source."""

    def make(height: int, width: int, **changes: Any) -> FrameHeader:
        facts: dict[str, Any] = {
            "camera": "door",
            "session": "s",
            "seq": 1,
            "lossless": False,
            "event_us": 0,
            "captured_ns": 0,
            "pixel_format": "rgb24",
            "height": height,
            "width": width,
            "source_height": height,
            "source_width": width,
            "scale": 1.0,
            "pad_left": 0,
            "pad_top": 0,
        }
        return FrameHeader(**{**facts, **changes})

    return make


@pytest.fixture
def painted() -> Image:
    """96x96 RGB, dark, with one cell of 32x32 red at row 32, column 64 and one blue at row 64, column 0.

    Small, because DeepSparse takes seconds to compile the cells' graph at 320x320.
    """
    picture = np.full((96, 96, 3), 40, np.uint8)
    picture[32:64, 64:96] = (255, 0, 0)
    picture[64:96, 0:32] = (0, 0, 255)
    return picture
