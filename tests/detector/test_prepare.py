"""A prepared model says what the original said, in the form its engine likes; what would say otherwise is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from detector.errors import EngineUnavailable, HeadError, ModelError
from detector.known import KNOWN, weights_digest
from detector.model import Model, parse_model, read_model
from detector.prepare import prepare as preparation
from detector.prepare.graph import Graph
from detector.prepare.prepare import PreparationRefused, Prepared, prepare_model
from detector.prepare.verify import generated_pictures
from detector.trial import Verdict


def prepared(path: Path, engine: str = "onnxruntime", **changes: Any) -> Prepared:
    return prepare_model(read_model(path), engine, measure=False, **changes)


def taken(result: Prepared) -> list[str]:
    return [step.name for step in result.report.steps if step.taken]


def same_answers(graphs: ModuleType, before: Model, after: Model, height: int, width: int) -> float:
    worst = 0.0
    for picture in generated_pictures(height, width, 1, seed=9):
        nchw = np.ascontiguousarray(picture.transpose(0, 3, 1, 2))
        expected = graphs.run(before.with_shape(1, height, width), nchw.astype(np.float32) / np.float32(255))
        worst = max(worst, float(np.abs(expected - graphs.run(after.with_shape(1, height, width), nchw)).max()))
    return worst


def test_a_yolo_is_prepared_for_each_engine_and_goes_on_taking_any_shape(
    graphs: ModuleType, tmp_path: Path, engine: str
) -> None:
    path = graphs.yolo_v5(tmp_path / "m.onnx")
    original = path.read_bytes()
    result = prepared(path, engine)
    assert set(taken(result)) >= {"unused outputs", "head layout", "bytes as input"}
    found = graphs.kinds(result.onnx)
    # HardSigmoid and Mul for ONNX Runtime; Add, Clip, Mul and Div for the two that fuse them.
    assert (found["HardSigmoid"], found["Clip"]) == ((3, 0) if engine == "onnxruntime" else (0, 3))
    after = parse_model(result.onnx, "after")
    assert (after.dtype, after.batch, after.labels, after.stride) == ("uint8", 1, {0: "cat", 1: "dog"}, 32)
    assert {entry.key: entry.value for entry in Graph(result.onnx).proto.metadata_props}["author"] == "me"
    for shape in ((128, 192), (64, 192), (96, 320)):
        assert same_answers(graphs, read_model(path), after, *shape) < 1e-2  # pixels
    assert result.report.rectangular and result.report.largest_difference < 1e-2
    assert result.report.after.nodes < result.report.before.nodes
    assert next(layer.shape for layer in result.report.layers) == (16, 3, 8, 8)
    assert path.read_bytes() == original
    # The five-dimensional transposes of the head are gone.
    assert all(len(perm) == 4 for perm in transposes(result.onnx))


def transposes(onnx_bytes: bytes) -> list[list[int]]:
    return [list(node.attribute[0].ints) for node in Graph(onnx_bytes).nodes if node.op_type == "Transpose"]


def test_a_frozen_model_is_prepared_at_its_shape_and_told_so(graphs: ModuleType, tmp_path: Path) -> None:
    path = graphs.yolo_v5(tmp_path / "m.onnx", fixed=(128, 192), raw_outputs=False)
    result = prepared(path)
    assert "head layout" in taken(result)
    assert not result.report.rectangular
    assert same_answers(graphs, read_model(path), parse_model(result.onnx, "after"), 128, 192) < 1e-2


def test_a_wanted_shape_is_fixed_and_folded(graphs: ModuleType, tmp_path: Path) -> None:
    path = graphs.yolo_v5(tmp_path / "m.onnx")
    result = prepared(path, image_shape=(96, 160))
    after = parse_model(result.onnx, "after")
    assert (after.height, after.width, result.report.rectangular) == (96, 160, False)
    assert same_answers(graphs, read_model(path), after, 96, 160) < 1e-2


def test_names_known_by_the_weights_are_written_down_before_the_weights_change(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96), names=None)
    digest = weights_digest(Graph(path.read_bytes()).proto.graph.initializer)
    monkeypatch.setitem(KNOWN, digest, {0: "pistol", 1: "gun"})
    result = prepared(path)
    monkeypatch.undo()
    assert parse_model(result.onnx, "after").labels == {0: "pistol", 1: "gun"}


def test_preparing_again_changes_nothing(graphs: ModuleType, tmp_path: Path) -> None:
    once = prepared(graphs.yolo_v5(tmp_path / "m.onnx"))
    (tmp_path / "once.onnx").write_bytes(once.onnx)
    assert taken(prepared(tmp_path / "once.onnx")) == []


def spoil(tensor: str) -> Callable[[Graph], str]:
    """A rewrite with a bug: the weights of the convolution that makes this tensor are doubled."""

    def rewrite(graph: Graph) -> str:
        convolution = graph.producer(tensor, "Conv")
        assert convolution is not None
        weight = graph.constant(convolution.input[1])
        assert weight is not None
        convolution.input[1] = graph.add_constant(weight * np.float32(2), "wrong")
        graph.clean()
        return "spoilt"

    return rewrite


def test_a_step_that_changes_the_output_is_left_out_and_its_node_named(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graphs.yolo_v5(tmp_path / "m.onnx")
    monkeypatch.setattr(preparation, "merge_duplicates", spoil("t35"))
    result = prepared(path)
    (step,) = (step for step in result.report.steps if step.name == "duplicates")
    assert not step.taken
    assert step.detail.startswith("would change the output by ") and "first at Conv 't35' " in step.detail
    assert same_answers(graphs, read_model(path), parse_model(result.onnx, "after"), 128, 192) < 1e-2


def test_a_change_that_only_other_pictures_show_is_refused(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps see black, which hides any change of the first weights; the pictures kept back do not."""
    real = generated_pictures

    def black_for_the_steps(height: int, width: int, batch: int, seed: int) -> list[Any]:
        return [np.zeros((batch, height, width, 3), np.uint8)] if seed == 1 else real(height, width, batch, seed)

    monkeypatch.setattr(preparation, "generated_pictures", black_for_the_steps)
    monkeypatch.setattr(preparation, "sign_weights", spoil("t0"))
    with pytest.raises(
        PreparationRefused, match=r"its output would differ by [\d.e+]+, first at Conv .*signed weights"
    ):
        prepared(graphs.yolo_v5(tmp_path / "m.onnx"))


def test_a_step_that_the_engine_does_not_bear_is_left_out(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DeepSparse does with some graphs; here the child process is stood in for, so that it happens on every CPU."""
    real = preparation.try_model

    def dies_without_raw_heads(model: Model, engine: str, **facts: Any) -> Verdict:
        verdict = real(model, engine, **facts)
        if len(Graph(model.data).outputs) == 1:
            return msgspec.structs.replace(verdict, accepted=False, reason="the engine died of SIGABRT")
        return verdict

    monkeypatch.setattr(preparation, "try_model", dies_without_raw_heads)
    result = prepared(graphs.yolo_v5(tmp_path / "m.onnx"))
    (step,) = (step for step in result.report.steps if step.name == "unused outputs")
    assert not step.taken and step.detail == "onnxruntime does not bear it: the engine died of SIGABRT"
    assert {"constants and idle nodes", "bytes as input"} <= set(taken(result))
    assert len(Graph(result.onnx).outputs) == 4


def test_times_are_a_pictures_and_not_a_batchs(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Verdict] = []
    real = preparation.try_model

    def noted(*asked: Any, **facts: Any) -> Verdict:
        tried.append(real(*asked, **facts))
        return tried[-1]

    monkeypatch.setattr(preparation, "try_model", noted)
    monkeypatch.setattr(preparation, "installed", lambda _: {"onnxruntime": ""})
    report = prepare_model(read_model(graphs.convolved(tmp_path / "m.onnx")), "onnxruntime", batch=4).report
    before, after = tried[-2:]
    assert before.batch == after.batch == 4
    assert report.before.ms == {"onnxruntime": before.best_ms / 4}
    assert report.after.ms == {"onnxruntime": after.best_ms / 4}


def test_an_unknown_or_missing_engine_is_refused_first(graphs: ModuleType, tmp_path: Path) -> None:
    path = graphs.yolo_v5(tmp_path / "m.onnx")
    with pytest.raises(EngineUnavailable, match="unknown engine"):
        prepared(path, "tensorrt")
    with pytest.raises(ModelError, match="no multiple of the model's stride"):
        prepared(path, image_shape=(100, 100))


def test_what_is_no_detector_is_refused(graphs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="unknown detection head"):
        prepared(graphs.classifier(tmp_path / "cls.onnx"))
