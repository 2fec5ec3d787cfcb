"""OpenVINO reports nothing to its makers, refuses in its own words, and gives answers that stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from detector import engines
from detector.engines import Engine, engine_class
from detector.errors import EngineRefused
from detector.model import Model, read_model

pytestmark = pytest.mark.skipif("openvino" not in engines.installed(), reason="openvino is not installed here")


@pytest.fixture
def model(graphs: ModuleType, tmp_path: Path) -> Model:
    return read_model(graphs.cells(tmp_path / "m.onnx", size=(96, 96)))


@pytest.fixture
def engine(model: Model) -> Engine:
    return engine_class("openvino").load(model.with_shape(1, 96, 96), 1)


def test_its_telemetry_is_never_loaded(tmp_path: Path) -> None:
    """It would be sent at the import, with an identity file in the home folder."""
    script = "import detector.engines.openvino, sys; print([m for m in sys.modules if m.startswith('openvino_tele')])"
    home = Path(engines.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(home), "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(EngineRefused, match="openvino cannot compile the model: Unable to read the model"):
        engine_class("openvino").load(b"no model", 1)


def test_a_picture_of_another_shape_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineRefused, match=r"openvino cannot run the model: .*\[1,3,96,96\]"):
        engine.infer(np.zeros((1, 3, 32, 32), np.uint8))


def test_an_answer_outlives_the_next_inference(engine: Engine, model: Model) -> None:
    first = engine.infer(model.tensor(1, 96, 96, 0))
    kept = [output.copy() for output in first]
    engine.infer(np.random.default_rng(1).integers(0, 256, (1, 3, 96, 96), dtype=np.uint8))
    assert all(np.array_equal(output, copy) for output, copy in zip(first, kept, strict=True))


def test_it_says_what_it_is(engine: Engine) -> None:
    assert engine.describe() == {"engine": "openvino", "version": engines.installed()["openvino"], "cores": 1}
