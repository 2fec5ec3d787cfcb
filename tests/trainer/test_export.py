"""An exported file says what its network says, at any shape and batch, and tells what it is."""

from __future__ import annotations

import ast
import gzip
import io
import json
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ExportError
from trainer.export import Exported, _FromBytes, export_checkpoint, export_dense_twin, export_network
from trainer.facts import Facts, read_facts
from trainer.graph.verify import difference, run
from trainer.layers import Activation
from trainer.model import SIZES, YoloV5

NAMES = {0: "person", 1: "car"}
FACTS = Facts("d1g3st", "quick", 7, {"map50": 0.5}, "CC0-1.0")


def network(activation: Activation = "hardswish", anchors: torch.Tensor | None = None) -> YoloV5:
    """A small network with lively outputs: fresh weights alone would give nearly the same number everywhere."""
    torch.manual_seed(1)
    made = YoloV5(SIZES["n"], len(NAMES), activation=activation, anchors=anchors)
    with torch.no_grad():
        for conv in made.model[24].m:
            conv.weight *= 20
    return made.eval()


def saved(what: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


def apart(onnx_bytes: bytes, made: YoloV5, pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[float, float]:
    return difference(onnx_bytes, _FromBytes(made, divisor=255), pictures)


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export_network(network(), NAMES, FACTS, image_size=(96, 128))


@pytest.fixture(scope="module")
def dynamic() -> Exported:
    return export_network(network(), NAMES, FACTS, image_size=(96, 128), dynamic=True)


def proto_of(exported: Exported) -> Any:
    return onnx.load_model_from_string(exported.onnx)


def dims(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_it_says_what_the_network_says_at_any_shape_and_batch(
    exported: Exported, dynamic: Exported, batch: int, rows: int, columns: int
) -> None:
    for form in (exported, dynamic):
        sides, score = apart(form.onnx, network(), noise(batch, 3, rows * 32, columns * 32))
        assert sides < 1e-4 and score < 1e-3


@pytest.mark.parametrize("activation", ["silu", "hardswish"])
def test_own_anchors_and_each_activation_are_exported(activation: Activation) -> None:
    anchors = torch.arange(4.0, 22).view(3, 3, 2)
    made = network(activation, anchors)
    form = export_network(made, NAMES, FACTS, image_size=(64, 64), batch=2)
    assert max(apart(form.onnx, made, noise(2, 3, 64, 64))) < 1e-3
    told = {entry.key: entry.value for entry in proto_of(form).metadata_props}
    assert json.loads(told["anchors"]) == anchors.tolist()


def test_the_network_is_left_as_it_is() -> None:
    made = network()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    export_network(made, NAMES, FACTS, image_size=(64, 64))
    assert before.keys() == made.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_hardswish_is_written_in_the_form_that_engines_run_fastest(exported: Exported) -> None:
    kinds = [node.op_type for node in proto_of(exported).graph.node]
    assert kinds.count("Clip") == 57, "one for each activation"
    assert not {"HardSwish", "HardSigmoid", "BatchNormalization", "Slice"} & set(kinds)


def test_input_and_output_are_declared(exported: Exported, dynamic: Exported) -> None:
    graph = proto_of(exported).graph
    assert (graph.input[0].name, graph.output[0].name) == ("images", "output0")
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert dims(graph.input[0]) == [1, 3, 96, 128]
    assert dims(graph.output[0]) == list(run(exported.onnx, noise(1, 3, 96, 128)).shape)
    graph = proto_of(dynamic).graph
    assert dims(graph.input[0]) == ["batch", 3, "height", "width"]
    assert dims(graph.output[0]) == ["batch", "predictions", 7]


def test_the_file_tells_what_it_is(exported: Exported, dynamic: Exported) -> None:
    told = {entry.key: entry.value for entry in proto_of(exported).metadata_props}
    assert ast.literal_eval(told["names"]) == NAMES
    assert json.loads(told["imgsz"]) == [96, 128]
    assert (told["stride"], told["strides"], told["batch"]) == ("32", "[8, 16, 32]", "1")
    assert (told["dataset"], told["recipe"], told["epochs"], told["license"]) == ("d1g3st", "quick", "7", "CC0-1.0")
    assert json.loads(told["scores"]) == {"map50": 0.5}
    assert "batch" not in {entry.key for entry in proto_of(dynamic).metadata_props}


def test_what_is_not_known_is_left_out() -> None:
    form = export_network(network(), NAMES, Facts(), image_size=(64, 64))
    keys = {entry.key for entry in proto_of(form).metadata_props}
    assert keys == {"names", "imgsz", "stride", "strides", "anchors", "task", "batch"}


def test_a_checkpoint_of_ours_brings_its_facts() -> None:
    rows = [
        {"metrics/mAP_0.5": 0.4, "metrics/mAP_0.5:0.95": 0.2},
        {"metrics/mAP_0.5": 0.6, "metrics/mAP_0.5:0.95": 0.3},
    ]
    data = saved(
        {
            "model": network().state_dict(),
            "activation": "hardswish",
            "image_size": [64, 96],
            "progress": {"epoch": 2, "best_fitness": 0.5},
            "recipe": "modifiers: []",
            "train": {"recipe": "recipes/yolov5.pruned.md"},
            "results": rows,
            "dataset": "abc",
            "licence": "CC0-1.0",
        }
    )
    facts = read_facts(data, "m.pt")
    assert facts == Facts("abc", "yolov5.pruned.md", 2, {"map50": 0.6, "map50_95": 0.3}, "CC0-1.0")
    form = export_checkpoint(data, "m.pt", facts)
    assert dims(proto_of(form).graph.input[0]) == [1, 3, 64, 96]
    assert max(apart(form.onnx, network(), noise(1, 3, 64, 96))) < 1e-3
    told = {entry.key: entry.value for entry in proto_of(form).metadata_props}
    assert ast.literal_eval(told["names"]) == {0: "class0", 1: "class1"}
    # The scores are not told of what is read back: they are the written file's.
    assert read_facts(form.onnx, "m.onnx") == Facts("abc", "yolov5.pruned.md", 2, {}, "CC0-1.0")


def test_a_checkpoint_that_is_only_weights_has_no_facts() -> None:
    assert read_facts(saved(dict(network().state_dict())), "m.pt") == Facts()
    odd = {"model": network().state_dict(), "epoch": -1, "results": ["?"], "recipe": 3, "train": 4}
    assert read_facts(saved(odd), "m.pt") == Facts()


def test_its_layers_are_named_as_the_network_names_them(exported: Exported) -> None:
    convolutions = [node.name for node in proto_of(exported).graph.node if node.op_type == "Conv"]
    named = [name for name, module in network().named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(convolutions) == sorted(named)


def test_a_dense_twin_has_the_same_layers_and_no_zeros() -> None:
    made = network()
    with torch.no_grad():
        made.model[2].cv1.conv.weight.zero_()
    sparse = export_network(made, NAMES, FACTS, image_size=(64, 64))
    dense = export_dense_twin(
        saved({"model": made.state_dict(), "activation": "hardswish"}), "m.pt", image_size=(64, 64)
    )
    assert [node.op_type for node in proto_of(dense).graph.node] == [
        node.op_type for node in proto_of(sparse).graph.node
    ]
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in proto_of(dense).graph.initializer]
    assert all(np.count_nonzero(weight) == weight.size for weight in weights if weight.ndim == 4 and weight.size > 1000)


def test_compressing_is_lossless_and_repeatable(exported: Exported) -> None:
    assert gzip.decompress(exported.compressed()) == exported.onnx
    assert exported.compressed() == exported.compressed()


def test_a_size_that_is_no_multiple_of_the_stride_is_refused_with_one_that_is() -> None:
    with pytest.raises(ExportError, match="96x120 pixels; expected multiples of 32, such as 96x128"):
        export_network(network(), NAMES, FACTS, image_size=(96, 120))


def test_a_graph_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.graph.decode import _Level

    right = _Level._factors

    def wrong(self: _Level) -> Any:
        square, *rest = right(self)
        return (square * 1.1, *rest)

    monkeypatch.setattr(_Level, "_factors", wrong)
    with pytest.raises(ExportError, match="differs from its network by"):
        export_network(network(), NAMES, FACTS, image_size=(64, 64))
