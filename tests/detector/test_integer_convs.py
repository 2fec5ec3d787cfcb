"""Convolutions of integers say the same in the form that an engine runs fast; what only looks like them stays."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, load_model_from_string

from detector import engines, heads
from detector.cpu import saturates
from detector.engines import engine_class
from detector.find_raw import find, noise, verify
from detector.model import read_model
from detector.prepare.integer_convs import for_onnxruntime, for_openvino
from detector.raw_heads import RawHead, cut

BYTES = TensorProto.UINT8
EXACT = partial(for_openvino, saturates=False)
UNSIGNED = partial(for_onnxruntime, saturates=False)
REWRITES = (UNSIGNED, EXACT)
Nodes = list[Any]
Values = dict[str, Any]


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


def integer_convolution(
    *,
    groups: int = 1,
    zero: int | None = 0,
    middle: int | None = 0,
    bias: bool = True,
    seed: int = 0,
    **attributes: Any,
) -> tuple[Nodes, Values]:
    """One from the picture to `out`, nine channels.

    `zero` and `middle` are the zero points of picture and weights, None: not written.
    """
    random = np.random.default_rng(seed)
    values: Values = {
        "w": random.integers(-127, 128, (9, 3 // groups, 3, 3), dtype=np.int8),
        "steps": random.uniform(1e-4, 1e-3, (1, 9, 1, 1)).astype(np.float32),
    }
    names = ["images", "w", "", ""]
    if zero is not None:
        values["xz"] = np.array(zero, np.uint8)
        names[2] = "xz"
    if middle is not None:
        values["wz"] = np.array(middle, np.int8)
        names[3] = "wz"
    while not names[-1]:
        names.pop()
    nodes = [helper.make_node("ConvInteger", names, ["sum"], group=groups, **attributes)]
    if bias:
        values["bias"] = random.integers(-10000, 10000, (1, 9, 1, 1), dtype=np.int32)
        nodes.append(helper.make_node("Add", ["bias", "sum"], ["whole"]))
    nodes.append(helper.make_node("Cast", [nodes[-1].output[0]], ["float"], to=TensorProto.FLOAT))
    return [*nodes, helper.make_node("Mul", ["float", "steps"], ["out"])], values


@settings(max_examples=40)
@given(
    groups=st.sampled_from([1, 3]),
    zero=st.none() | st.integers(0, 255),
    middle=st.sampled_from([None, 0, -5, 127]),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    attributes=st.sampled_from(
        [{}, {"pads": [1, 0, 2, 1]}, {"strides": [2, 1], "pads": [1, 1, 1, 1]}, {"dilations": [2, 3]}]
    ),
)
def test_one_says_the_same_in_every_form(graphs: ModuleType, attributes: dict[str, Any], **kind: Any) -> None:
    before = graphs.model_of(*integer_convolution(**kind, **attributes), kind=BYTES)
    picture = pixels(1, 3, 64, 96)
    expected = graphs.run(before, picture)
    assert np.array_equal(graphs.run(UNSIGNED(before), picture), expected)
    found = EXACT(before)
    assert graphs.kinds(found) == {"DequantizeLinear": 2, "Conv": 1, "Mul": 1, "Add": 1}
    assert np.abs(graphs.run(found, picture) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_zero_points_of_channels_are_kept_apart(graphs: ModuleType) -> None:
    """ONNX Runtime knows only one for all, so here they are in the weights of what is compared with."""
    nodes, values = integer_convolution(middle=0)
    values["w"] = values["w"] // 2
    expected = graphs.run(graphs.model_of(nodes, values, kind=BYTES), pixels(1, 3, 64, 96))
    middles = np.arange(-4, 5, dtype=np.int8)
    values |= {"w": values["w"] + middles.reshape(-1, 1, 1, 1), "wz": middles}
    found = graphs.run(EXACT(graphs.model_of(nodes, values, kind=BYTES)), pixels(1, 3, 64, 96))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_model_without_any_stays_as_it_is(graphs: ModuleType, tmp_path: Path, rewrite: Any) -> None:
    data = graphs.convolved(tmp_path / "m.onnx").read_bytes()
    assert rewrite(data) is data
    # The word alone, as a tensor's name, is none either.
    named = graphs.model_of([helper.make_node("Relu", ["images"], ["out"])], {"ConvInteger": np.float32(1)})
    assert rewrite(named) is named


def computed_steps(nodes: Nodes, values: Values) -> None:
    nodes.insert(0, helper.make_node("Relu", ["steps"], ["computed"]))
    nodes[-1].input[1] = "computed"


def sum_read_twice(nodes: Nodes, _: Values) -> None:
    nodes[-1].output[0] = "scaled"
    nodes.append(helper.make_node("Cast", ["whole"], ["again"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Add", ["scaled", "again"], ["out"]))


def no_steps(nodes: Nodes, _: Values) -> None:
    nodes.pop()
    nodes[-1].output[0] = "out"


def steps_of_columns(_: Nodes, values: Values) -> None:
    values["steps"] = np.ones((1, 1, 1, 94), np.float32)


def negative_steps(_: Nodes, values: Values) -> None:
    values["steps"] = -values["steps"]


@pytest.mark.parametrize("change", [computed_steps, sum_read_twice, no_steps, steps_of_columns, negative_steps])
def test_what_is_not_rescaled_by_constants_stays_integer(graphs: ModuleType, change: Any) -> None:
    nodes, values = integer_convolution()
    change(nodes, values)
    before = graphs.model_of(nodes, values, kind=BYTES)
    assert EXACT(before) is before
    assert np.array_equal(graphs.run(UNSIGNED(before), pixels(1, 3, 64, 96)), graphs.run(before, pixels(1, 3, 64, 96)))


@pytest.mark.parametrize("alike", [True, False])
def test_before_zero_points_by_channel_were_in_onnx_only_one_for_all_is_rewritten(
    graphs: ModuleType, alike: bool
) -> None:
    nodes, values = integer_convolution()
    if not alike:
        values["wz"] = np.arange(-4, 5, dtype=np.int8)
    proto = load_model_from_string(graphs.model_of(nodes, values, kind=BYTES))
    proto.opset_import[0].version = 12
    before = proto.SerializeToString()
    assert (EXACT(before) is not before) is alike


def test_unsigned_weights_stay(graphs: ModuleType) -> None:
    nodes, values = integer_convolution()
    values |= {"w": (values["w"].astype(np.int16) + 128).astype(np.uint8), "wz": np.array(128, np.uint8)}
    before = graphs.model_of(nodes, values, kind=BYTES)
    assert UNSIGNED(before) is before


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(1, 128, 128), (2, 64, 96)], ids=str)
def test_engines_run_it_at_any_size_whole_and_from_its_raw_heads(
    graphs: ModuleType, tmp_path: Path, engine: str, size: tuple[int, int, int]
) -> None:
    if engine not in engines.installed():
        pytest.skip(f"{engine} is not installed here")
    model = read_model(graphs.convolved(tmp_path / "m.onnx", integers=True))
    picture = noise(model, *size)
    whole = model.with_shape(*size)
    # On a CPU without VNNI the weights that OpenVINO gets are rounded once more.
    form = for_openvino(whole, saturates=saturates()) if engine == "openvino" else whole
    expected = graphs.run(form, picture)
    (found,) = engine_class(engine).load(whole, 1).infer(picture)
    # A pooled value on the edge between two of 256 steps may go to either side.
    apart = np.abs(found - expected)
    assert np.median(apart) < 1e-4 and apart[..., 4:].max() < 0.05
    raw = find(model, heads.recognise([expected], *size[1:], 2), *size)
    reader = RawHead(raw, *size)
    outputs = engine_class(engine).load(cut(whole, raw, *size), 1).infer(picture)
    reader.check(outputs)
    verify(reader, outputs, found, engine)
