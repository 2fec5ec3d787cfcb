"""Choosing an engine says beforehand what it will take, and each measurement as it comes; kept ones are silent."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from structlog.testing import capture_logs

from detector import engines
from detector.choose import Trials, choose
from detector.model import Model, read_model
from detector.settings import DetectorSettings


def logged(model: Model, **settings: Any) -> list[Any]:
    with capture_logs() as logs:
        choose(Trials(model, DetectorSettings.model_validate(settings), 1))
    return logs


def test_the_first_choice_tells_what_it_measures_and_the_next_is_silent(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    logs = logged(model, cache_dir=tmp_path, engine="auto")
    installed = list(engines.installed("onnx"))
    first = logs[0]
    assert first["event"].startswith("measuring the model, which takes up to minutes")
    assert first["engines"] == f"{len(installed)} ({', '.join(installed)})"
    assert first["kept_in"] == str(tmp_path / "trials")
    assert first["then"] == "up to 3 more shapes and batches of the fastest"
    assert ("detector.engine" in first["to_skip"]) if len(installed) > 1 else ("to_skip" not in first)
    assert sum(one["event"].startswith("measuring") for one in logs) == 1
    results = [one for one in logs if one["event"] in ("tried", "engine refused the model")]
    assert [one["engine"] for one in results][: len(installed)] == installed
    # Each result stands before the next trial begins, and not all of them at the end.
    for begin, end in zip(_places(logs, "trying"), _places(logs, "tried", "engine refused"), strict=False):
        assert end == begin + 1
    assert [one["event"] for one in logged(model, cache_dir=tmp_path, engine="auto")] == ["engine chosen"]


def test_one_engine_that_was_asked_for_is_measured_alone(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    first = logged(model, cache_dir=tmp_path, engine="onnxruntime", rectangular=False, batch=1)[0]
    assert first["engines"] == "1 (onnxruntime)"
    assert "to_skip" not in first and "then" not in first


def _places(logs: list[Any], *begins: str) -> list[int]:
    return [place for place, one in enumerate(logs) if one["event"].startswith(begins)]
