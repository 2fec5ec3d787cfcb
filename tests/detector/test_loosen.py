"""A QLinearConv in 32 bits says what it said in eight, up to their rounding."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from detector import engines
from detector.engines import engine_class
from detector.prepare.integer_convs import for_openvino

_STEP = 1 / 16
Nodes = list[Any]
Values = dict[str, Any]


def convolution(zero: int, seed: int = 0, *, groups: int = 1) -> tuple[Nodes, Values]:
    """QLinearConv and DequantizeLinear to `out`; sums lie on both sides of what eight bits hold from `zero`."""
    random = np.random.default_rng(seed)
    values: Values = {
        "w": random.integers(-63, 64, (6, 3 // groups, 3, 3)).astype(np.int8),
        "ws": random.uniform(1e-3, 3e-3, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "xs": np.float32(1 / 32),
        "xz": np.array(120, np.uint8),
        "ys": np.float32(_STEP),
        "yz": np.array(zero, np.uint8),
        "bias": random.integers(-9000, 9000, 6, dtype=np.int32),
    }
    names = ["images", "xs", "xz", "w", "ws", "wz", "ys", "yz", "bias"]
    return [
        helper.make_node("QLinearConv", names, ["q"], group=groups, pads=[1, 0, 2, 1]),
        helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"]),
    ], values


def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)


@settings(max_examples=30)
@given(zero=st.sampled_from([0, 7, 128, 255]), seed=st.integers(0, 2**32 - 1), groups=st.sampled_from([1, 3]))
def test_its_result_is_limited_as_eight_bits_are(graphs: ModuleType, zero: int, seed: int, groups: int) -> None:
    """Quantisers leave a ReLU to the lower end of the eight bits."""
    model = graphs.model_of(*convolution(zero, seed, groups=groups), kind=TensorProto.UINT8)
    found = for_openvino(model, saturates=False)
    assert graphs.kinds(found) == {"DequantizeLinear": 2, "Conv": 1, "Mul": 1, "Add": 1, "Clip": 1}
    expected, got = graphs.run(model, pixels()), graphs.run(found, pixels())
    assert np.abs(got - expected).max() <= _STEP / 2 + 1e-4
    assert got.min() >= -zero * _STEP - 1e-6 and got.max() <= (255 - zero) * _STEP + 1e-6


def test_openvino_keeps_a_relu_that_is_in_the_rounding(graphs: ModuleType) -> None:
    if "openvino" not in engines.installed():
        pytest.skip("openvino is not installed here")
    model = graphs.model_of(*convolution(0), kind=TensorProto.UINT8)
    (found,) = engine_class("openvino").load(model, 1).infer(pixels())
    expected = graphs.run(model, pixels())
    assert found.min() == 0
    assert (expected == 0).mean() > 0.1
    assert np.abs(found - expected).max() <= _STEP / 2 + 0.01 * expected.max()


def other_step(nodes: Nodes, values: Values) -> None:
    nodes[1].input[1] = "zs"
    values["zs"] = np.float32(2 * _STEP)


def other_zero(nodes: Nodes, values: Values) -> None:
    nodes[1].input[2] = "zz"
    values["zz"] = np.array(100, np.uint8)


def read_twice(nodes: Nodes, _: Values) -> None:
    nodes[1].output[0] = "half"
    nodes.append(helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["other_half"]))
    nodes.append(helper.make_node("Add", ["half", "other_half"], ["out"]))


@pytest.mark.parametrize("change", [other_step, other_zero, read_twice])
def test_where_others_read_the_eight_bits_they_stay(graphs: ModuleType, change: Any) -> None:
    nodes, values = convolution(128)
    change(nodes, values)
    model = graphs.model_of(nodes, values, kind=TensorProto.UINT8)
    found = for_openvino(model, saturates=False)
    kinds = graphs.kinds(found)
    assert "QLinearConv" not in kinds and kinds["QuantizeLinear"] == 1
    # A sum right between two steps may go to either side.
    apart = np.abs(graphs.run(found, pixels()) - graphs.run(model, pixels()))
    assert apart.max() <= 2 * _STEP + 1e-4 and (apart < 1e-4).mean() > 0.999
