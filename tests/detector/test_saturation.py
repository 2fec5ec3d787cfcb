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
from detector.engines import engine_class
from detector.prepare.integer_convs import for_openvino
from detector.prepare.saturation import narrow, saturating

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
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), most=st.sampled_from([1, 40, 64, 90, 127]), alike=st.booleans())
def test_no_pair_of_narrowed_weights_saturates(shape: tuple[int, ...], seed: int, most: int, alike: bool) -> None:
    weights = np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.int8)
    found, growth = narrow(weights, alike=alike)
    positive, negative = pair_sums(found)
    assert positive <= 32767 and negative <= 32768
    assert (growth >= 1).all() and (growth <= 2).all()
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
    exact = sums * values["steps" if "steps" in values else "ws"].reshape(-1, 1, 1)
    return graphs.model_of(before + nodes, values, kind=BYTES), picture, exact


KINDS = [integers, rounded, dequantised, dequantised_alike]


@pytest.mark.parametrize("engine", ["deepsparse", "onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_engine_saturates_here(graphs: ModuleType, engine: str, kind: Any) -> None:
    """Read as what it is only on a CPU without VNNI; there, narrowing may cost a hundredth."""
    if engine not in engines.installed():
        pytest.skip(f"{engine} is not installed here")
    model, picture, exact = saturating_model(graphs, kind)
    (found,) = engine_class(engine).load(model, 1).infer(picture)
    rounding = _COARSE / 2 if kind is rounded and engine == "onnxruntime" else 1 / 32
    assert np.abs(found - exact).max() <= 0.01 * np.abs(exact).max() + rounding


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_gets_weights_that_cannot_saturate_on_such_a_cpu_only(graphs: ModuleType, kind: Any) -> None:
    model, picture, exact = saturating_model(graphs, kind)
    for narrowed in (True, False):
        proto = load_model_from_string(for_openvino(model, saturates=narrowed))
        (weights,) = (
            array
            for one in proto.graph.initializer
            if (array := numpy_helper.to_array(one)).dtype == np.int8 and array.ndim == 4
        )
        assert bool(pair_sums(weights).max() <= 32768) is narrowed
    found = graphs.run(for_openvino(model, saturates=True), picture)
    assert np.abs(found - exact).max() <= 0.01 * np.abs(exact).max() + 1 / 32


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
