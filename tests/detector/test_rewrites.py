"""Each rewrite of a graph keeps what it computes; what only looks like its pattern stays as it is."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from detector.prepare.activations import HardSwishForm, rewrite_hard_swish
from detector.prepare.graph import Graph
from detector.prepare.report import sparsity
from detector.prepare.simplify import fold_requantisation, merge_duplicates
from detector.prepare.uint8_input import take_bytes
from detector.prepare.weights import sign_weights

FLOAT, BYTES = TensorProto.FLOAT, TensorProto.UINT8
RANDOM = np.random.default_rng(7)
Nodes = list[Any]
Values = dict[str, Any]


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(size=shape).astype(np.float32)


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


@pytest.mark.parametrize("written", HARD_SWISH)
@pytest.mark.parametrize("wanted", ["add-clip-mul-div", "hardsigmoid-mul"])
def test_every_spelling_of_hard_swish_becomes_the_one_wanted(
    graphs: ModuleType, written: str, wanted: HardSwishForm
) -> None:
    nodes = [helper.make_node("Conv", ["images", "w"], ["x"]), *HARD_SWISH[written]]
    before = graphs.model_of(nodes, {"w": floats(4, 3, 1, 1), **graphs.HARD_SWISH_NUMBERS})
    graph = Graph(before)
    done = rewrite_hard_swish(graph, wanted)
    assert bool(done) == (written != wanted)
    four = {"Conv": 1, "Add": 1, "Clip": 1, "Mul": 1, "Div": 1}
    assert graphs.kinds(graph.to_bytes()) == (
        four if wanted == "add-clip-mul-div" else {"Conv": 1, "HardSigmoid": 1, "Mul": 1}
    )
    tensor = floats(1, 3, 64, 96) * 4
    assert np.abs(graphs.run(before, tensor) - graphs.run(graph.to_bytes(), tensor)).max() < 1e-5


@pytest.mark.parametrize(("alpha", "three_is"), [(0.2, 3.0), (1 / 6, 2.5)], ids=["another slope", "another offset"])
def test_what_only_looks_like_hard_swish_stays(graphs: ModuleType, alpha: float, three_is: float) -> None:
    nodes = [
        helper.make_node("HardSigmoid", ["images"], ["g"], alpha=0.2, beta=0.5),
        helper.make_node("Mul", ["g", "images"], ["x"]),
        *HARD_SWISH["add-clip-mul-div"],
    ]
    graph = Graph(graphs.model_of(nodes, {**graphs.HARD_SWISH_NUMBERS, "three": graphs.float32(2.5)}))
    assert rewrite_hard_swish(graph, "hardsigmoid-mul") == ""
    assert rewrite_hard_swish(graph, "add-clip-mul-div") == ""


SCALE = np.array(0.05, np.float32)


def quantised_convolution(**changes: Any) -> tuple[Nodes, Values]:
    values: Values = {
        "xs": np.array(1 / 255, np.float32),
        "xz": np.uint8(0),
        # 128 +- 63: on CPUs without VNNI, ONNX Runtime adds pairs of products in 16 bits, and clips there.
        "w": RANDOM.integers(65, 192, (8, 3, 3, 3), dtype=np.uint8),
        "ws": np.array(0.01, np.float32),
        "wz": np.uint8(128),
        "ys": SCALE,
        "yz": np.uint8(120),
        **changes,
    }
    return [helper.make_node("QLinearConv", ["images", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["q"])], values


def test_signed_weights_are_the_same_weights(graphs: ModuleType) -> None:
    nodes, values = quantised_convolution()
    nodes.append(helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"]))
    before = graphs.model_of(nodes, values, kind=BYTES)
    graph = Graph(before)
    zeros = sparsity(graph)
    assert sign_weights(graph) == "1 unsigned weights"
    assert sparsity(graph) == zeros
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(graphs.run(before, pictures), graphs.run(graph.to_bytes(), pictures))
    assert sign_weights(graph) == ""


def test_weights_around_another_middle_keep_their_sign(graphs: ModuleType) -> None:
    nodes, values = quantised_convolution(wz=np.uint8(100))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"]))
    assert sign_weights(Graph(graphs.model_of(nodes, values, kind=BYTES))) == ""


@pytest.mark.parametrize("same", [True, False])
def test_only_requantising_with_the_same_scale_is_idle(graphs: ModuleType, same: bool) -> None:
    nodes, values = quantised_convolution()
    values["other"] = SCALE if same else graphs.float32(0.06)
    nodes += [
        helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "other", "yz"], ["again"]),
        helper.make_node("DequantizeLinear", ["again", "other", "yz"], ["out"]),
    ]
    before = graphs.model_of(nodes, values, kind=BYTES)
    graph = Graph(before)
    assert bool(fold_requantisation(graph)) == same
    assert graphs.kinds(graph.to_bytes())["QuantizeLinear"] == (0 if same else 1)
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(graphs.run(before, pictures), graphs.run(graph.to_bytes(), pictures))


def test_what_is_computed_twice_is_computed_once_and_noise_is_not_merged(graphs: ModuleType) -> None:
    nodes = [
        helper.make_node("Relu", ["images"], ["a"]),
        helper.make_node("Relu", ["images"], ["b"]),
        helper.make_node("RandomNormalLike", ["a"], ["n"]),
        helper.make_node("RandomNormalLike", ["a"], ["m"]),
        helper.make_node("Sum", ["a", "b", "n", "m"], ["out"]),
    ]
    graph = Graph(graphs.model_of(nodes, {}))
    assert merge_duplicates(graph) == "1 nodes computed twice"
    assert graphs.kinds(graph.to_bytes()) == {"Relu": 1, "RandomNormalLike": 2, "Sum": 1}


def test_a_picture_quantised_byte_by_byte_is_read_as_bytes_exactly(graphs: ModuleType) -> None:
    nodes, values = quantised_convolution()
    quantise = helper.make_node("QuantizeLinear", ["images", "xs", "xz"], ["bytes"])
    nodes[0].input[0] = "bytes"
    before = graphs.model_of(
        [quantise, *nodes, helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"])], values
    )
    graph = Graph(before)
    assert "without quantising" in take_bytes(graph)
    assert graphs.kinds(graph.to_bytes())["QuantizeLinear"] == 0
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(
        graphs.run(before, pictures.astype(np.float32) / np.float32(255)), graphs.run(graph.to_bytes(), pictures)
    )


@pytest.mark.parametrize("shared_weight", [False, True])
def test_a_float_model_divides_by_255_inside(graphs: ModuleType, shared_weight: bool) -> None:
    nodes = [helper.make_node("Conv", ["images", "w"], ["x"]), helper.make_node("Relu", ["x"], ["out"])]
    if shared_weight:  # another reader of the weights: they must stay what they are
        nodes[1] = helper.make_node("Conv", ["x", "w"], ["out"])
    before = graphs.model_of(nodes, {"w": floats(3, 3, 1, 1)})
    graph = Graph(before)
    assert ("weights" in take_bytes(graph)) != shared_weight
    pictures = RANDOM.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    expected = graphs.run(before, pictures.astype(np.float32) / np.float32(255))
    assert np.abs(expected - graphs.run(graph.to_bytes(), pictures)).max() < 1e-4
    assert Graph(graph.to_bytes()).picture().type.tensor_type.elem_type == BYTES


def test_zero_blocks_of_four_are_counted_along_input_channels(graphs: ModuleType) -> None:
    weight = floats(2, 8, 1, 1)
    weight[0, :4] = 0  # one block of four
    weight[1, 2:6] = 0  # four zeros in two blocks
    graph = Graph(
        graphs.model_of([helper.make_node("Conv", ["x", "w"], ["out"])], {"w": weight, "x": floats(1, 8, 4, 4)})
    )
    (layer,) = sparsity(graph)
    assert (layer.zeros, layer.zero_blocks) == (0.5, 0.25)
