"""Rewrites that suit every engine: no unused outputs, constants folded, nothing computed twice, no idle (de)quantising.

Each takes a graph, changes it and says what it did; an empty answer means that there was nothing to do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import load_model_from_string
from onnx.onnx_ml_pb2 import ModelProto, NodeProto, TensorProto

from detector.prepare.graph import Graph, clone

_ERRORS_ONLY = 3
# It moves (de)quantising past other nodes to suit ONNX Runtime's own next stage, which adds pairs.
_NOT_WANTED = ["QDQPropagationTransformer"]


def keep_outputs(graph: Graph, wanted: tuple[int, ...]) -> str:
    """Keep only the outputs that the detection head reads."""
    values = list(graph.proto.graph.output)
    dropped = [value.name for index, value in enumerate(values) if index not in wanted]
    if not dropped:
        return ""
    kept = [clone(values[index]) for index in wanted]
    del graph.proto.graph.output[:]
    graph.proto.graph.output.extend(kept)
    graph.clean()
    return f"outputs {', '.join(dropped)} removed"


def simplify(onnx: bytes) -> bytes:
    """Constants folded, identities, dropout and dead branches removed, Conv with its batch norm merged.

    By ONNX Runtime's own first optimisation stage, which writes nothing but standard ONNX; it is installed anyway and
    kept better than any tool made for this.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"], disabled_optimizers=_NOT_WANTED)
        proto = load_model_from_string(path.read_bytes())
    _forget_its_own(proto, load_model_from_string(onnx))
    return bytes(proto.SerializeToString())


def _forget_its_own(proto: ModelProto, before: ModelProto) -> None:
    """Undo what ONNX Runtime writes beside the graph: operator sets that nobody uses, itself as the producer."""
    used = {node.domain for node in proto.graph.node}
    kept = [clone(entry) for entry in proto.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    del proto.metadata_props[:]
    proto.metadata_props.extend(before.metadata_props)
    proto.producer_name = before.producer_name


def has_float16(graph: Graph) -> bool:
    """Whether weights are float16: ONNX Runtime would write its detours by float32 into the file."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.proto.graph.initializer)


def merge_duplicates(graph: Graph) -> str:
    """Compute once what is computed twice: nodes of one kind with the same inputs and attributes."""
    seen: dict[tuple[object, ...], NodeProto] = {}
    merged = 0
    for node in graph.nodes:
        if any(name in graph.outputs for name in node.output) or node.op_type.startswith("Random"):
            continue
        inputs = tuple(_value_key(graph, name) for name in node.input)
        attributes = tuple(sorted(entry.SerializeToString() for entry in node.attribute))
        key = (node.domain, node.op_type, inputs, attributes, len(node.output))
        first = seen.setdefault(key, node)
        if first is not node:
            for mine, theirs in zip(node.output, first.output, strict=True):
                graph.reroute(mine, theirs)
            merged += 1
    graph.clean()
    return f"{merged} nodes computed twice" if merged else ""


def _value_key(graph: Graph, name: str) -> object:
    """Small constants by their value, since exporters write each scale once a reader; all else by name."""
    value = graph.constant(name)
    if value is not None and value.size <= 16:
        return str(value.dtype), value.shape, value.tobytes()
    return name


def fold_requantisation(graph: Graph) -> str:
    """DequantizeLinear straight into QuantizeLinear of the same scale and zero point is nothing at all: exact."""
    folded = 0
    for quantise in graph.nodes:
        if quantise.op_type != "QuantizeLinear":
            continue
        dequantise = graph.producer(quantise.input[0], "DequantizeLinear")
        if dequantise is None or quantise.output[0] in graph.outputs or not _same_grid(graph, dequantise, quantise):
            continue
        graph.reroute(quantise.output[0], dequantise.input[0])
        folded += 1
    graph.clean()
    return f"{folded} pairs of DequantizeLinear and QuantizeLinear with one scale" if folded else ""


def _same_grid(graph: Graph, one: NodeProto, other: NodeProto) -> bool:
    if [entry.SerializeToString() for entry in one.attribute] != [e.SerializeToString() for e in other.attribute]:
        return False
    # The third input is the zero point, and with it the type; without it the type is uint8.
    if (len(one.input) > 2) != (len(other.input) > 2):
        return False
    for mine, theirs in zip(one.input[1:], other.input[1:], strict=True):
        left, right = graph.constant(mine), graph.constant(theirs)
        if left is None or right is None or left.dtype != right.dtype or not np.array_equal(left, right):
            return False
    return True
