"""A prepared model says what the original said, in the form its engine likes; what would say otherwise is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detector.errors import EngineUnavailable, HeadError, ModelError
from detector.model import Model, parse_model, read_model
from detector.prepare import prepare as preparation
from detector.prepare.activations import HardSwishForm, rewrite_hard_swish
from detector.prepare.graph import Graph
from detector.prepare.prepare import PreparationRefused, Prepared, prepare_model
from detector.prepare.report import sparsity
from detector.prepare.simplify import fold_requantisation, merge_duplicates
from detector.prepare.uint8_input import take_bytes
from detector.prepare.verify import generated_pictures, session
from detector.prepare.weights import sign_weights
from detector.trial import Verdict

FLOAT, BYTES = TensorProto.FLOAT, TensorProto.UINT8
RANDOM = np.random.default_rng(7)
Nodes = list[Any]
Values = dict[str, Any]


def model_of(
    nodes: Nodes, values: Values, *, kind: int = FLOAT, shape: tuple[Any, ...] = (1, 3, 64, 96), out: str = "out"
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(out, FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()
    )


def run(onnx_bytes: bytes, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    made = session(onnx_bytes)
    result: np.ndarray[Any, Any] = made.run(None, {made.get_inputs()[0].name: tensor})[0]
    return result


def kinds(onnx_bytes: bytes) -> Counter[str]:
    return Counter(node.op_type for node in Graph(onnx_bytes).nodes)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(size=shape).astype(np.float32)


def three(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


HARD_SWISH: dict[str, Nodes] = {
    "hardswish": [helper.make_node("HardSwish", ["x"], ["out"])],
    "hardsigmoid-mul": [
        helper.make_node("HardSigmoid", ["x"], ["g"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["g", "x"], ["out"]),
    ],
    "add-clip-mul-div": [
        helper.make_node("Add", ["three", "x"], ["a"]),
        helper.make_node("Clip", ["a", "zero", "six"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["m"]),
        helper.make_node("Div", ["m", "six"], ["out"]),
    ],
    "add-clip-div-mul": [
        helper.make_node("Add", ["x", "three"], ["a"]),
        helper.make_node("Clip", ["a", "zero", "six"], ["c"]),
        helper.make_node("Div", ["c", "six"], ["d"]),
        helper.make_node("Mul", ["d", "x"], ["out"]),
    ],
}
NUMBERS = {"three": three(3), "zero": three(0), "six": three(6)}


@pytest.mark.parametrize("written", HARD_SWISH)
@pytest.mark.parametrize("wanted", ["add-clip-mul-div", "hardsigmoid-mul"])
def test_every_spelling_of_hard_swish_becomes_the_one_wanted(written: str, wanted: HardSwishForm) -> None:
    nodes = [helper.make_node("Conv", ["images", "w"], ["x"]), *HARD_SWISH[written]]
    before = model_of(nodes, {"w": floats(4, 3, 1, 1), **NUMBERS})
    graph = Graph(before)
    done = rewrite_hard_swish(graph, wanted)
    assert bool(done) == (written != wanted)
    four = {"Conv": 1, "Add": 1, "Clip": 1, "Mul": 1, "Div": 1}
    assert kinds(graph.to_bytes()) == (
        four if wanted == "add-clip-mul-div" else {"Conv": 1, "HardSigmoid": 1, "Mul": 1}
    )
    tensor = floats(1, 3, 64, 96) * 4
    assert np.abs(run(before, tensor) - run(graph.to_bytes(), tensor)).max() < 1e-5


@pytest.mark.parametrize(("alpha", "three_is"), [(0.2, 3.0), (1 / 6, 2.5)], ids=["another slope", "another offset"])
def test_what_only_looks_like_hard_swish_stays(alpha: float, three_is: float) -> None:
    nodes = [
        helper.make_node("HardSigmoid", ["images"], ["g"], alpha=0.2, beta=0.5),
        helper.make_node("Mul", ["g", "images"], ["x"]),
        *HARD_SWISH["add-clip-mul-div"],
    ]
    graph = Graph(model_of(nodes, {**NUMBERS, "three": three(2.5)}))
    assert rewrite_hard_swish(graph, "hardsigmoid-mul") == ""
    assert rewrite_hard_swish(graph, "add-clip-mul-div") == ""


SCALE = three(0.05)


def quantised_convolution(**changes: Any) -> tuple[Nodes, Values]:
    values: Values = {
        "xs": three(1 / 255),
        "xz": np.uint8(0),
        "w": RANDOM.integers(0, 256, (8, 3, 3, 3), dtype=np.uint8),
        "ws": three(0.01),
        "wz": np.uint8(128),
        "ys": SCALE,
        "yz": np.uint8(120),
        **changes,
    }
    return [helper.make_node("QLinearConv", ["images", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["q"])], values


def test_signed_weights_are_the_same_weights() -> None:
    nodes, values = quantised_convolution()
    nodes.append(helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"]))
    before = model_of(nodes, values, kind=BYTES)
    graph = Graph(before)
    zeros = sparsity(graph)
    assert sign_weights(graph) == "1 unsigned weights"
    assert sparsity(graph) == zeros
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(run(before, pictures), run(graph.to_bytes(), pictures))
    assert sign_weights(graph) == ""


def test_weights_around_another_middle_keep_their_sign() -> None:
    nodes, values = quantised_convolution(wz=np.uint8(100))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"]))
    assert sign_weights(Graph(model_of(nodes, values, kind=BYTES))) == ""


@pytest.mark.parametrize("same", [True, False])
def test_only_requantising_with_the_same_scale_is_idle(same: bool) -> None:
    nodes, values = quantised_convolution()
    values["other"] = SCALE if same else three(0.06)
    nodes += [
        helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "other", "yz"], ["again"]),
        helper.make_node("DequantizeLinear", ["again", "other", "yz"], ["out"]),
    ]
    before = model_of(nodes, values, kind=BYTES)
    graph = Graph(before)
    assert bool(fold_requantisation(graph)) == same
    assert kinds(graph.to_bytes())["QuantizeLinear"] == (0 if same else 1)
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(run(before, pictures), run(graph.to_bytes(), pictures))


def test_what_is_computed_twice_is_computed_once_and_noise_is_not_merged() -> None:
    nodes = [
        helper.make_node("Relu", ["images"], ["a"]),
        helper.make_node("Relu", ["images"], ["b"]),
        helper.make_node("RandomNormalLike", ["a"], ["n"]),
        helper.make_node("RandomNormalLike", ["a"], ["m"]),
        helper.make_node("Sum", ["a", "b", "n", "m"], ["out"]),
    ]
    graph = Graph(model_of(nodes, {}))
    assert merge_duplicates(graph) == "1 nodes computed twice"
    assert kinds(graph.to_bytes()) == {"Relu": 1, "RandomNormalLike": 2, "Sum": 1}


def test_a_picture_quantised_byte_by_byte_is_read_as_bytes_exactly() -> None:
    nodes, values = quantised_convolution()
    quantise = helper.make_node("QuantizeLinear", ["images", "xs", "xz"], ["bytes"])
    nodes[0].input[0] = "bytes"
    before = model_of([quantise, *nodes, helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"])], values)
    graph = Graph(before)
    assert "without quantising" in take_bytes(graph)
    assert kinds(graph.to_bytes())["QuantizeLinear"] == 0
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(run(before, pictures.astype(np.float32) / np.float32(255)), run(graph.to_bytes(), pictures))


@pytest.mark.parametrize("shared_weight", [False, True])
def test_a_float_model_divides_by_255_inside(shared_weight: bool) -> None:
    nodes = [helper.make_node("Conv", ["images", "w"], ["x"]), helper.make_node("Relu", ["x"], ["out"])]
    if shared_weight:  # another reader of the weights: they must stay what they are
        nodes[1] = helper.make_node("Conv", ["x", "w"], ["out"])
    before = model_of(nodes, {"w": floats(3, 3, 1, 1)})
    graph = Graph(before)
    assert ("weights" in take_bytes(graph)) != shared_weight
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    expected = run(before, pictures.astype(np.float32) / np.float32(255))
    assert np.abs(expected - run(graph.to_bytes(), pictures)).max() < 1e-4
    assert Graph(graph.to_bytes()).picture().type.tensor_type.elem_type == BYTES


def test_zero_blocks_of_four_are_counted_along_input_channels() -> None:
    weight = floats(2, 8, 1, 1)
    weight[0, :4] = 0  # one block of four
    weight[1, 2:6] = 0  # four zeros in two blocks
    graph = Graph(model_of([helper.make_node("Conv", ["x", "w"], ["out"])], {"w": weight, "x": floats(1, 8, 4, 4)}))
    (layer,) = sparsity(graph)
    assert (layer.zeros, layer.zero_blocks) == (0.5, 0.25)


STRIDES = (8, 16, 32)
ANCHORS = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))
CLASSES = 2


def yolo(path: Path, *, fixed: tuple[int, int] | None = None, raw_outputs: bool = True) -> Path:
    """A YOLOv5 of three convolutions with random weights, float input and hard-swish, written as PyTorch exports it.

    Its grid follows the shape, or is frozen to `fixed` (height, width).
    """
    random = np.random.default_rng(11)
    nodes: Nodes = []
    values: Values = {"two": three(2), "half": three(0.5), **NUMBERS}

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    def const(value: Any) -> str:
        values[f"k{len(values)}"] = np.asarray(value)
        return f"k{len(values) - 1}"

    def convolution(x: str, inputs: int, outputs: int, size: int) -> str:
        weight = random.normal(size=(outputs, inputs, size, size), scale=(inputs * size * size) ** -0.5)
        # With a bias, as every export has: DeepSparse takes the 3 of hard-swish for the bias of one that has none.
        bias = random.normal(size=outputs, scale=0.1).astype(np.float32)
        return op("Conv", x, const(weight.astype(np.float32)), const(bias), strides=[size, size])

    def level(x: str, channels: int, index: int) -> tuple[str, str]:
        per_anchor = 5 + CLASSES
        raw = convolution(x, channels, 3 * per_anchor, 1)
        shape = op("Shape", raw)
        if fixed is None:
            sides = [op("Gather", shape, const(np.int64(axis)), axis=0) for axis in (2, 3)]
            whole = [op("Unsqueeze", side, const(np.array([0]))) for side in sides]
            target = op("Concat", const(np.array([-1, 3, per_anchor])), *whole, axis=0)
            y, x_ = (op("Range", const(np.int64(0)), side, const(np.int64(1))) for side in sides)
            rows = op("Reshape", y, const(np.array([-1, 1])))
            columns = op("Reshape", x_, const(np.array([1, -1])))
            grid_shape = op("Concat", *whole, axis=0)
            pair = [op("Unsqueeze", op("Expand", a, grid_shape), const(np.array([-1]))) for a in (columns, rows)]
            grid = op("Cast", op("Concat", *pair, axis=-1), to=FLOAT)
        else:
            height, width = (side // STRIDES[index] for side in fixed)
            target = const(np.array([1, 3, per_anchor, height, width]))
            grid = const(np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32))
        turned = op("Transpose", op("Reshape", raw, target), perm=[0, 1, 3, 4, 2])
        score = op("Sigmoid", turned)
        parts = [
            op("Slice", score, const(np.array([start])), const(np.array([end])), const(np.array([4])))
            for start, end in ((0, 2), (2, 4), (4, per_anchor))
        ]
        centre = op("Add", op("Sub", op("Mul", parts[0], "two"), "half"), grid)
        centre = op("Mul", centre, const(three(STRIDES[index])))
        anchor = const(np.array(ANCHORS[index], np.float32).reshape(1, 3, 1, 1, 2))
        size = op("Mul", op("Pow", op("Mul", parts[1], "two"), "two"), anchor)
        box = op("Concat", centre, size, parts[2], axis=-1)
        return op("Reshape", box, const(np.array([1, -1, per_anchor]))), turned

    x, before, found = "images", 3, []
    for index, (channels, size) in enumerate(((16, 8), (24, 2), (32, 2))):
        x = convolution(x, before, channels, size)
        x, before = op("HardSwish", x), channels
        found.append(level(x, channels, index))
    nodes.append(helper.make_node("Concat", [rows for rows, _ in found], ["out"], axis=1))
    shape = (1, 3, *(fixed or ("height", "width")))
    proto = onnx.load_model_from_string(model_of(nodes, values, shape=shape))
    if raw_outputs:
        proto.graph.output.extend(helper.make_tensor_value_info(raw, FLOAT, None) for _, raw in found)
    helper.set_model_props(proto, {"names": "{0: 'cat', 1: 'dog'}", "imgsz": "[128, 192]", "author": "me"})
    onnx.save(proto, str(path))
    return path


def prepared(path: Path, engine: str = "onnxruntime", **changes: Any) -> Prepared:
    return prepare_model(read_model(path), engine, measure=False, **changes)


def taken(result: Prepared) -> list[str]:
    return [step.name for step in result.report.steps if step.taken]


def same_answers(before: Model, after: Model, height: int, width: int) -> float:
    worst = 0.0
    for picture in generated_pictures(height, width, 1, seed=9):
        nchw = np.ascontiguousarray(picture.transpose(0, 3, 1, 2))
        expected = run(before.with_shape(1, height, width), nchw.astype(np.float32) / np.float32(255))
        worst = max(worst, float(np.abs(expected - run(after.with_shape(1, height, width), nchw)).max()))
    return worst


def test_a_yolo_is_prepared_for_each_engine_and_goes_on_taking_any_shape(tmp_path: Path, engine: str) -> None:
    path = yolo(tmp_path / "m.onnx")
    original = path.read_bytes()
    result = prepared(path, engine)
    assert set(taken(result)) >= {"unused outputs", "head layout", "bytes as input"}
    found = kinds(result.onnx)
    # HardSigmoid and Mul for ONNX Runtime; Add, Clip, Mul and Div for the two that fuse them.
    assert (found["HardSigmoid"], found["Clip"]) == ((3, 0) if engine == "onnxruntime" else (0, 3))
    after = parse_model(result.onnx, "after")
    assert (after.dtype, after.batch, after.labels, after.stride) == ("uint8", 1, {0: "cat", 1: "dog"}, 32)
    assert {entry.key: entry.value for entry in Graph(result.onnx).proto.metadata_props}["author"] == "me"
    for shape in ((128, 192), (64, 192), (96, 320)):
        assert same_answers(read_model(path), after, *shape) < 1e-2  # pixels
    assert result.report.rectangular and result.report.largest_difference < 1e-2
    assert result.report.after.nodes < result.report.before.nodes
    assert next(layer.shape for layer in result.report.layers) == (16, 3, 8, 8)
    assert path.read_bytes() == original
    # The five-dimensional transposes of the head are gone.
    assert all(len(perm) == 4 for perm in transposes(result.onnx))


def transposes(onnx_bytes: bytes) -> list[list[int]]:
    return [list(node.attribute[0].ints) for node in Graph(onnx_bytes).nodes if node.op_type == "Transpose"]


def test_a_frozen_model_is_prepared_at_its_shape_and_told_so(tmp_path: Path) -> None:
    path = yolo(tmp_path / "m.onnx", fixed=(128, 192), raw_outputs=False)
    result = prepared(path)
    assert "head layout" in taken(result)
    assert not result.report.rectangular
    assert same_answers(read_model(path), parse_model(result.onnx, "after"), 128, 192) < 1e-2


def test_a_wanted_shape_is_fixed_and_folded(tmp_path: Path) -> None:
    path = yolo(tmp_path / "m.onnx")
    result = prepared(path, image_shape=(96, 160))
    after = parse_model(result.onnx, "after")
    assert (after.height, after.width, result.report.rectangular) == (96, 160, False)
    assert same_answers(read_model(path), after, 96, 160) < 1e-2


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    once = prepared(yolo(tmp_path / "m.onnx"))
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yolo(tmp_path / "m.onnx")
    monkeypatch.setattr(preparation, "merge_duplicates", spoil("t35"))
    result = prepared(path)
    (step,) = (step for step in result.report.steps if step.name == "duplicates")
    assert not step.taken
    assert step.detail.startswith("would change the output by ") and "first at Conv 't35' " in step.detail
    assert same_answers(read_model(path), parse_model(result.onnx, "after"), 128, 192) < 1e-2


def test_a_change_that_only_other_pictures_show_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps see black, which hides any change of the first weights; the pictures kept back do not."""
    real = generated_pictures

    def black_for_the_steps(height: int, width: int, batch: int, seed: int) -> list[Any]:
        return [np.zeros((batch, height, width, 3), np.uint8)] if seed == 1 else real(height, width, batch, seed)

    monkeypatch.setattr(preparation, "generated_pictures", black_for_the_steps)
    monkeypatch.setattr(preparation, "sign_weights", spoil("t0"))
    with pytest.raises(
        PreparationRefused, match=r"its output would differ by [\d.e+]+, first at Conv .*signed weights"
    ):
        prepared(yolo(tmp_path / "m.onnx"))


def test_a_step_that_the_engine_does_not_bear_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSparse does with some graphs; here the child process is stood in for, so that it happens on every CPU."""
    real = preparation.try_model

    def dies_without_raw_heads(model: Model, engine: str, **facts: Any) -> Verdict:
        verdict = real(model, engine, **facts)
        if len(Graph(model.data).outputs) == 1:
            return msgspec.structs.replace(verdict, accepted=False, reason="the engine died of SIGABRT")
        return verdict

    monkeypatch.setattr(preparation, "try_model", dies_without_raw_heads)
    result = prepared(yolo(tmp_path / "m.onnx"))
    (step,) = (step for step in result.report.steps if step.name == "unused outputs")
    assert not step.taken and step.detail == "onnxruntime does not bear it: the engine died of SIGABRT"
    assert {"constants and idle nodes", "bytes as input"} <= set(taken(result))
    assert len(Graph(result.onnx).outputs) == 4


def test_an_unknown_or_missing_engine_is_refused_first(tmp_path: Path) -> None:
    path = yolo(tmp_path / "m.onnx")
    with pytest.raises(EngineUnavailable, match="unknown engine"):
        prepared(path, "tensorrt")
    with pytest.raises(ModelError, match="no multiple of the model's stride"):
        prepared(path, image_shape=(100, 100))


def test_what_is_no_detector_is_refused(graphs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="unknown detection head"):
        prepared(graphs.classifier(tmp_path / "cls.onnx"))
