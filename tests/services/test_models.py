"""`models prepare` writes a model that detects the same and says what it did; refusing, it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import structlog

from detector.model import read_model
from services.commands.models import prepare


def test_it_writes_a_model_and_a_report(graphs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = graphs.cells(tmp_path / "in.onnx", dtype="float32", size=(96, 96))
    target = tmp_path / "new" / "out.onnx"
    with structlog.testing.capture_logs():  # as the command line does: logs are not its result
        code = prepare(source, target, engine="onnxruntime", batch=1, image_shape=None, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert read_model(target).dtype == "uint8"
    assert {"bytes as input"} <= {step["name"] for step in report["steps"] if step["taken"]}
    assert report["after"]["ms"]["onnxruntime"] > 0
    assert report["after"]["size_bytes"] == target.stat().st_size
    assert [path.name for path in target.parent.iterdir()] == ["out.onnx"]


def test_the_table_names_every_step_and_engine(
    graphs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = graphs.cells(tmp_path / "in.onnx", size=(96, 96))
    assert prepare(source, source, engine="onnxruntime", batch=1, image_shape=None, as_json=False) == 0
    shown = capsys.readouterr().out
    for word in ("unused outputs", "head layout", "nothing to do", "nodes", "size", "onnxruntime", "zero blocks of 4"):
        assert word in shown


def test_a_target_that_cannot_be_written_is_named_and_leaves_nothing_beside_it(
    graphs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = graphs.cells(tmp_path / "in.onnx", size=(96, 96)), tmp_path / "out" / "folder"
    target.mkdir(parents=True)
    assert prepare(source, target, engine="onnxruntime", batch=1, image_shape=None, as_json=False) == 1
    told = capsys.readouterr().err.replace("\n", " ")
    assert "Is a directory" in told and str(target) in told
    assert list(target.parent.iterdir()) == [target]


def test_a_refusal_is_said_and_nothing_is_written(
    graphs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = graphs.classifier(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert prepare(source, target, engine="onnxruntime", batch=1, image_shape=None, as_json=False) == 1
    assert "unknown detection head" in capsys.readouterr().err.replace("\n", " ")
    assert prepare(tmp_path / "no.onnx", target, engine="auto", batch=1, image_shape=None, as_json=False) == 1
    assert "cannot read the model" in capsys.readouterr().err.replace("\n", " ")
    assert not target.exists()
