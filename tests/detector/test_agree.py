"""An engine that computes a quantised model wrongly is found out, and OpenVINO is not given what it reads wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, load_model_from_string

from detector import engines, heads
from detector.agree import JUDGE, strays
from detector.engines import engine_class
from detector.model import Model, read_model
from detector.prepare.integer_convs import for_openvino

MODEL = Path(__file__).parents[2] / "models" / "street-yolov5n.onnx"
SHAPE = 64, 96
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(MODEL)


@pytest.fixture(scope="module")
def head(model: Model) -> heads.Head:
    grey = model.tensor(1, *SHAPE, 114)
    return heads.recognise(loaded(model, JUDGE).infer(grey), *SHAPE, len(model.labels or {}))


def loaded(model: Model, name: str) -> engines.Engine:
    return engine_class(name).load(model.with_shape(1, *SHAPE), 1)


class Stuck:
    """An engine that answers the first picture rightly, and every other one with the same boxes."""

    def __init__(self, engine: engines.Engine) -> None:
        self._engine = engine
        self._said: list[Array] = []

    def infer(self, tensor: Array) -> Sequence[Array]:
        self._said = self._said or [np.array(output) for output in self._engine.infer(tensor)]
        return self._said


@pytest.mark.parametrize("name", [name for name in engines.installed("onnx") if name != JUDGE])
def test_rounding_alone_is_no_reason_to_refuse_an_engine(model: Model, head: heads.Head, name: str) -> None:
    assert strays(loaded(model, name), model, head, 1) == ""


def test_an_engine_that_answers_otherwise_is_refused_with_what_to_do(model: Model, head: heads.Head) -> None:
    stuck: Any = Stuck(loaded(model, JUDGE))
    found = strays(stuck, model, head, 1)
    assert "computes this quantised model otherwise than onnxruntime" in found
    assert "unsigned activations" in found


@settings(max_examples=20, deadline=None)
@given(middle=st.integers(-128, 127), step=st.sampled_from([0.004, 0.01, 0.1]), shared=st.booleans())
def test_signed_activations_say_the_same_unsigned(graphs: ModuleType, middle: int, step: float, shared: bool) -> None:
    random = np.random.default_rng(3)
    values = {
        "step": np.array(step, np.float32),
        "middle": np.array(middle, np.int8),
        "weights": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "step", "middle"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "middle"], ["d"]),
        helper.make_node("Conv", ["d", "weights"], ["y"], pads=[1, 1, 1, 1]),
    ]
    if shared:  # eight bits that something else reads as well stay as they are
        nodes.append(helper.make_node("Cast", ["q"], ["z"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", ["z"], ["sum"], keepdims=0))
        nodes.append(helper.make_node("Add", ["y", "sum"], ["out"]))
    else:
        nodes.append(helper.make_node("Identity", ["y"], ["out"]))
    before = graphs.model_of(nodes, values, shape=(1, 3, 8, 8))
    after = for_openvino(before, saturates=False)
    kinds = {one.data_type for one in load_model_from_string(after).graph.initializer}
    assert (TensorProto.INT8 in kinds) == shared
    picture = random.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(graphs.run(after, picture), graphs.run(before, picture))
