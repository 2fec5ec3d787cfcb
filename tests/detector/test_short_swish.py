"""DeepSparse gets quantised convolutions and hard-swish in a shorter form that says the same."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from detector.prepare.short_swish import for_deepsparse

BYTES = TensorProto.UINT8
CHANNELS = 8
Nodes = list[Any]
Values = dict[str, Any]


def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)


def swish(graphs: ModuleType, x: str) -> tuple[Nodes, Values]:
    """x * clip(x + 3, 0, 6) / 6 to `out`."""
    nodes = [
        helper.make_node("Add", [x, "three"], ["moved"]),
        helper.make_node("Clip", ["moved", "zero", "six"], ["clipped"]),
        helper.make_node("Mul", ["clipped", x], ["product"]),
        helper.make_node("Div", ["product", "six"], ["out"]),
    ]
    return nodes, dict(graphs.HARD_SWISH_NUMBERS)


def integer(graphs: ModuleType, seed: int = 0) -> tuple[Nodes, Values]:
    """As the trainer exports it: sums of integers times the steps of each channel."""
    random = np.random.default_rng(seed)
    nodes, values = swish(graphs, "x")
    values |= {
        "w": random.integers(-127, 128, (CHANNELS, 3, 3, 3), dtype=np.int8),
        "w0": np.array(0, np.int8),
        "x0": np.array(0, np.uint8),
        "bias": random.integers(-30000, 30000, (1, CHANNELS, 1, 1), dtype=np.int32),
        "steps": random.uniform(1e-5, 1e-4, (1, CHANNELS, 1, 1)).astype(np.float32),
    }
    conv = [
        helper.make_node("ConvInteger", ["images", "w", "x0", "w0"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "steps"], ["x"]),
    ]
    return conv + nodes, values


def rounded(graphs: ModuleType, seed: int = 0, *, unsigned: bool = True, bias: bool = True) -> tuple[Nodes, Values]:
    """As SparseML exports it: sums rounded to eight bits, which become floats again. Their step is 1/16."""
    random = np.random.default_rng(seed)
    nodes, values = swish(graphs, "x")
    # 63 at most: on CPUs without VNNI, ONNX Runtime adds pairs of products in 16 bits, and clips there.
    weights = random.integers(-63, 64, (CHANNELS, 3, 3, 3))
    values |= {
        "w": (weights + 128).astype(np.uint8) if unsigned else weights.astype(np.int8),
        "ws": np.array(4e-3, np.float32),
        "w0": np.array(128, np.uint8) if unsigned else np.array(0, np.int8),
        "xs": np.array(1 / 255, np.float32),
        "x0": np.array(0, np.uint8),
        "ys": np.array(1 / 16, np.float32),
        "y0": np.array(128, np.uint8),
    }
    names = ["images", "xs", "x0", "w", "ws", "w0", "ys", "y0"]
    if bias:
        values["bias"] = random.integers(-30000, 30000, CHANNELS, dtype=np.int32)
        names.append("bias")
    conv = [
        helper.make_node("QLinearConv", names, ["q"], strides=[2, 1], pads=[1, 0, 1, 2]),
        helper.make_node("DequantizeLinear", ["q", "ys", "y0"], ["x"]),
    ]
    return conv + nodes, values


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_division_goes_into_the_steps(graphs: ModuleType, seed: int) -> None:
    before = graphs.model_of(*integer(graphs, seed), kind=BYTES)
    found = for_deepsparse(before)
    assert graphs.kinds(found) == {"ConvInteger": 1, "Cast": 1, "Add": 2, "Mul": 2, "Clip": 1}
    expected = graphs.run(before, pixels())
    assert np.abs(graphs.run(found, pixels()) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), unsigned=st.booleans(), bias=st.booleans())
def test_a_rounded_convolution_is_off_by_its_rounding_at_most(graphs: ModuleType, seed: int, **kind: bool) -> None:
    before = graphs.model_of(*rounded(graphs, seed, **kind), kind=BYTES)
    found = for_deepsparse(before)
    assert graphs.kinds(found)["ConvInteger"] == 1
    assert not {"QLinearConv", "DequantizeLinear", "Div"} & graphs.kinds(found).keys()
    expected, got = graphs.run(before, pixels()), graphs.run(found, pixels())
    inside = expected < 7.5  # beyond, the eight bits of the original are at their end
    # Half a step of 1/16, by the steepest slope of hard-swish, which is 1.5.
    assert np.abs(got - expected)[inside].max() <= 1.5 / 32 + 1e-4


def also_told(nodes: Nodes, _: Values) -> None:
    nodes[-1].output[0] = "swished"
    nodes.append(helper.make_node("Add", ["swished", "x"], ["out"]))


def other_number(_: Nodes, values: Values) -> None:
    values["three"] = np.array(2, np.float32)


def computed_factor(nodes: Nodes, values: Values) -> None:
    nodes.insert(0, helper.make_node("Relu", ["steps"], ["computed"]))
    next(node for node in nodes if node.output[0] == "x").input[1] = "computed"


@pytest.mark.parametrize("change", [also_told, other_number, computed_factor])
def test_what_it_does_not_fit_stays_as_it_is(graphs: ModuleType, change: Any) -> None:
    nodes, values = integer(graphs)
    change(nodes, values)
    before = graphs.model_of(nodes, values, kind=BYTES)
    assert for_deepsparse(before) is before


def test_a_rounded_convolution_without_hard_swish_stays(graphs: ModuleType) -> None:
    nodes, values = rounded(graphs)
    nodes = [*nodes[:2], helper.make_node("Relu", ["x"], ["out"])]
    before = graphs.model_of(nodes, values, kind=BYTES)
    assert for_deepsparse(before) is before


def test_weights_around_another_zero_stay(graphs: ModuleType) -> None:
    nodes, values = rounded(graphs)
    values["w0"] = np.array(100, np.uint8)
    before = graphs.model_of(nodes, values, kind=BYTES)
    assert graphs.kinds(for_deepsparse(before))["QLinearConv"] == 1


@pytest.mark.parametrize("kind", [integer, rounded])
def test_deepsparse_runs_it(graphs: ModuleType, kind: Any) -> None:
    pytest.importorskip("deepsparse")
    from detector.engines.deepsparse import DeepSparseEngine

    model = graphs.model_of(*kind(graphs), kind=BYTES)
    (found,) = DeepSparseEngine.load(model, 1).infer(pixels())
    assert np.abs(found - graphs.run(for_deepsparse(model), pixels())).max() < 1e-3
