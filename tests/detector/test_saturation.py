"""On a CPU that adds up products in 16 bits INT8 models say the same as elsewhere."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, load_model_from_string, numpy_helper

from detector import engines
from detector.cpu import saturating
from detector.engines import engine_class
from detector.errors import EngineRefused
from detector.prepare.integer_convs import for_openvino
from detector.prepare.saturation import narrow

BYTES = TensorProto.UINT8
SHAPES = st.sampled_from([(2, 3, 6, 6), (3, 16, 1, 1), (2, 8, 3, 3), (4, 1, 3, 3), (1, 6, 1, 1)])
Array = np.ndarray[Any, Any]
_COARSE = 6.0  # step of a QLinearConv's eight bits here


def pair_sums(weights: Array) -> Array:
    """What an engine may add up in 16 bits: 255 times either sign of neighbours in four lanes, else of any two."""
    out, channels = weights.shape[:2]
    wide = weights.astype(np.int64)
    found = []
    for sign in (1, -1):
        same = np.maximum(sign * wide, 0)
        if channels % 4:
            found.append(np.sort(same.reshape(out, -1), axis=1)[:, -2:].sum(axis=1).max())
        else:
            found.append((same[:, 0::2] + same[:, 1::2]).max())
    return 255 * np.array(found)


@settings(max_examples=200)
@given(
    shape=SHAPES, seed=st.integers(0, 2**32 - 1), most=st.sampled_from([1, 40, 64, 90, 127, 128]), alike=st.booleans()
)
def test_no_pair_of_narrowed_weights_saturates(shape: tuple[int, ...], seed: int, most: int, alike: bool) -> None:
    weights = np.random.default_rng(seed).integers(-most, min(most, 127) + 1, shape).astype(np.int8)
    found, growth = narrow(weights, alike=alike)
    positive, negative = pair_sums(found)
    assert positive <= 32767 and negative <= 32768
    assert (growth >= 1).all() and (growth <= 256 / 127).all()
    off = found - weights / growth.reshape(-1, 1, 1, 1)
    assert np.abs(off).max() < 1
    assert np.abs(off.reshape(len(off), -1).sum(axis=1)).max() <= 0.5 + 1e-6
    assert not found[weights == 0].any()
    if most <= 63:
        assert np.array_equal(found, weights) and (growth == 1).all()


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "processor : 0\nflags\t\t: fpu avx2 fma\n", True),
        ("x86_64", "flags\t\t: avx2 avx512f avx512_vnni\n", False),
        ("x86_64", "flags\t\t: avx2 avx_vnni\n", False),
        ("AMD64", "", True),
        ("aarch64", "Features\t: asimd asimddp\n", False),
    ],
)
def test_which_cpus_saturate(machine: str, cpuinfo: str, expected: bool) -> None:
    assert saturating(machine, cpuinfo) is expected


def integers(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    """As the trainer exports them."""
    values: dict[str, Any] = {
        "w": weights,
        "xz": np.array(0, np.uint8),
        "wz": np.array(0, np.int8),
        "bias": random.integers(-9000, 9000, (1, len(weights), 1, 1), dtype=np.int32),
        "steps": random.uniform(1e-4, 2e-4, (1, len(weights), 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "steps"], ["out"]),
    ]
    return nodes, values


def rounded(_: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    """As SparseML exports them, and ONNX Runtime's quantiser with `QOperator`."""
    values: dict[str, Any] = {
        "w": weights,
        "ws": np.array(1.5e-4, np.float32),
        "wz": np.array(0, np.int8),
        "xs": np.array(1, np.float32),
        "xz": np.array(0, np.uint8),
        "ys": np.array(_COARSE, np.float32),
        "yz": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["out"]),
    ]
    return nodes, values


def dequantised(
    random: np.random.Generator, weights: Array, *, by_channel: bool = True
) -> tuple[list[Any], dict[str, Any]]:
    """As most quantisers export them (`QDQ`)."""
    steps = random.uniform(1e-4, 2e-4, len(weights)) if by_channel else 1.5e-4
    values: dict[str, Any] = {
        "w": weights,
        "ws": np.array(steps, np.float32),
        "wz": np.zeros(np.shape(steps), np.int8),
        "xs": np.array(1, np.float32),
        "xz": np.array(0, np.uint8),
    }
    axis = {"axis": 0} if by_channel else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], **axis),
        helper.make_node("Conv", ["xf", "wf"], ["out"]),
    ]
    return nodes, values


def dequantised_alike(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    return dequantised(random, weights, by_channel=False)


def trained(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    """As quantised training leaves them: floats that QuantizeLinear rounds in the graph."""
    nodes, values = dequantised(random, weights)
    values["floats"] = (values.pop("w") * values["ws"].reshape(-1, 1, 1, 1)).astype(np.float32)
    return [helper.make_node("QuantizeLinear", ["floats", "ws", "wz"], ["w"], axis=0), *nodes], values


def aliased(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    """As PyTorch writes constants that are equal to others."""
    nodes, values = dequantised(random, weights)
    values |= {f"{name}_first": values.pop(name) for name in ("w", "ws", "wz")}
    return [*(helper.make_node("Identity", [f"{name}_first"], [name]) for name in ("w", "ws", "wz")), *nodes], values


def without_zero(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    nodes, values = dequantised(random, weights)
    del nodes[1].input[2:]
    return nodes, values


def axis_from_the_end(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    nodes, values = dequantised(random, weights)
    nodes[1].attribute[0].i = -4
    return nodes, values


def shared(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    """Two convolutions of the same weights, as heads of several levels have them."""
    nodes, values = dequantised(random, weights)
    nodes[-1].output[0] = "half"
    twin = helper.make_node("Conv", ["xf", "wf"], ["other_half"])
    values["two"] = np.float32(2)
    both = [
        helper.make_node("Add", ["half", "other_half"], ["both"]),
        helper.make_node("Div", ["both", "two"], ["out"]),
    ]
    return [*nodes, twin, *both], values


def shared_zero(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    """Two layers with one tensor as the weights, and one as the zero point, of both."""
    nodes, values = shared(random, weights)
    nodes.insert(2, helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf2"], axis=0))
    next(node for node in nodes if node.output[0] == "other_half").input[1] = "wf2"
    return nodes, values


def reshaped(random: np.random.Generator, weights: Array) -> tuple[list[Any], dict[str, Any]]:
    nodes, values = dequantised(random, weights)
    values |= {"w": weights.reshape(len(weights), -1), "shape": np.array(weights.shape, np.int64)}
    nodes[1].output[0] = "flat"
    return [*nodes[:2], helper.make_node("Reshape", ["flat", "shape"], ["wf"]), nodes[2]], values


def saturating_model(graphs: ModuleType, kind: Any) -> tuple[bytes, Array, Array]:
    """(a convolution nearly all of whose pairs saturate, a picture, the exact answer in floats).

    The first convolution makes sixteen bright channels of the picture's three.
    """
    random = np.random.default_rng(3)
    weights = random.integers(70, 128, (8, 16, 3, 3)).astype(np.int8)
    weights[:4] = -weights[:4]
    nodes, values = kind(random, weights)
    values |= {
        "first": np.array(random.uniform(0.3, 0.34, (16, 3, 1, 1)), np.float32),
        "one": np.float32(1),
        "none": np.array(0, np.uint8),
    }
    before = [
        helper.make_node("Cast", ["images"], ["picture"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["picture", "first"], ["bright"]),
        helper.make_node("QuantizeLinear", ["bright", "one", "none"], ["x"]),
    ]
    picture = random.integers(150, 256, (1, 3, 64, 96), dtype=np.uint8)
    bright = np.einsum("bchw,oc->bohw", picture.astype(np.float64), values["first"][:, :, 0, 0].astype(np.float64))
    x = np.clip(np.rint(bright), 0, 255)
    sums = np.zeros((1, 8, 62, 94))
    for row in range(3):
        for column in range(3):
            sums += np.einsum(
                "bchw,oc->bohw",
                x[:, :, row : row + 62, column : column + 94],
                weights[:, :, row, column].astype(np.float64),
            )
    if "bias" in values:
        sums += values["bias"]
    steps = next(values[name] for name in ("steps", "ws", "ws_first") if name in values)
    exact = sums * steps.reshape(-1, 1, 1)
    return graphs.model_of(before + nodes, values, kind=BYTES), picture, exact


NARROWED = [integers, rounded, dequantised, dequantised_alike, trained, aliased, axis_from_the_end, shared]
KINDS = [*NARROWED, without_zero, shared_zero, reshaped]


@pytest.mark.parametrize("engine", ["deepsparse", "onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_engine_saturates_here(graphs: ModuleType, engine: str, kind: Any) -> None:
    """Read as what it is only on a CPU without VNNI; there, narrowing may cost a hundredth."""
    if engine not in engines.installed():
        pytest.skip(f"{engine} is not installed here")
    model, picture, exact = saturating_model(graphs, kind)
    if engine == "deepsparse" and kind not in (integers, rounded, dequantised):
        pytest.skip("DeepSparse reads the others in floats, or not at all")
    (found,) = engine_class(engine).load(model, 1).infer(picture)
    rounding = _COARSE / 2 if kind is rounded and engine == "onnxruntime" else 1 / 32
    assert np.abs(found - exact).max() <= 0.01 * np.abs(exact).max() + rounding


@pytest.mark.parametrize("kind", NARROWED)
def test_openvino_gets_weights_that_cannot_saturate_on_such_a_cpu_only(graphs: ModuleType, kind: Any) -> None:
    model, picture, exact = saturating_model(graphs, kind)
    for narrowed in (True, False):
        proto = load_model_from_string(for_openvino(model, saturates=narrowed))
        arrays = [numpy_helper.to_array(one) for one in proto.graph.initializer]
        bytewise = [array for array in arrays if array.dtype == np.int8 and array.ndim == 4]
        assert len(bytewise) == (1 if narrowed or kind is not trained else 0)
        assert all(bool(pair_sums(weights).max() <= 32768) is narrowed for weights in bytewise)
    found = graphs.run(for_openvino(model, saturates=True), picture)
    assert np.abs(found - exact).max() <= 0.01 * np.abs(exact).max() + 1 / 32


@pytest.mark.parametrize("kind", ["ConvTranspose", "MatMul"])
def test_openvino_multiplies_what_is_no_convolution_in_floats_on_such_a_cpu(graphs: ModuleType, kind: str) -> None:
    random = np.random.default_rng(3)
    shape = (3, 8, 3, 3) if kind == "ConvTranspose" else (96, 40)
    values = {
        "w": random.integers(70, 128, shape).astype(np.int8),
        "ws": np.float32(1e-3),
        "wz": np.int8(0),
        "xs": np.float32(1),
        "xz": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["images", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
        helper.make_node(kind, ["xf", "wf"], ["out"]),
    ]
    model = graphs.model_of(nodes, values, kind=BYTES)
    picture = random.integers(150, 256, (1, 3, 64, 96), dtype=np.uint8)
    expected = graphs.run(for_openvino(model, saturates=True), picture)
    if kind == "MatMul":
        exact = picture.astype(np.float64) @ (values["w"] * 1e-3)
        assert np.abs(expected - exact).max() < 1e-5 * exact.max()
    (found,) = engine_class("openvino").load(model, 1).infer(picture)
    assert np.abs(found - expected).max() < 0.01 * expected.max()


def test_openvino_refuses_what_would_saturate_in_a_form_that_cannot_be_changed(graphs: ModuleType) -> None:
    nodes, values = rounded(np.random.default_rng(0), np.full((8, 3, 3, 3), 90, np.int8))
    nodes[0].input[0] = "images"
    nodes.insert(0, helper.make_node("Relu", ["ys"], ["computed"]))
    nodes[1].input[6] = "computed"
    model = graphs.model_of(nodes, values, kind=BYTES)
    with pytest.raises(EngineRefused, match=r"QLinearConv 'q' would saturate on this CPU, which has no VNNI"):
        for_openvino(model, saturates=True)
    assert for_openvino(model, saturates=False) is model


def test_a_model_without_such_weights_stays_as_it_is(graphs: ModuleType) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-60, 61, (8, 16, 3, 3)).astype(np.int8)
    nodes, values = dequantised(random, weights)
    values["first"] = np.ones((16, 3, 1, 1), np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["picture"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["picture", "first"], ["bright"]),
        helper.make_node("QuantizeLinear", ["bright", "xs", "xz"], ["x"]),
        *nodes,
    ]
    model = graphs.model_of(nodes, values, kind=BYTES)
    assert for_openvino(model, saturates=True) is model
