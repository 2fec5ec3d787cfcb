"""Bring an exported graph into the form that engines recognise as quantised."""

from __future__ import annotations

from onnx import numpy_helper
from onnx.onnx_ml_pb2 import ModelProto, NodeProto, TensorProto


def tidy(model: ModelProto) -> None:
    """In place: constants and aliases become initializers, equal QuantizeLinear of one tensor become one node.

    PyTorch's exporter leaves scalars in Constant nodes and shares equal buffers through Identity nodes; DeepSparse ends
    the process on either where it expects a weight, a scale or a zero point.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    aliases: dict[str, str] = {}
    kept: list[NodeProto] = []
    seen: dict[tuple[str, bytes, bytes], str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = aliases.get(name, name)
        value = _value(node)
        if value is not None:
            value.name = node.output[0]
            constants[value.name] = value
            graph.initializer.append(value)
        elif node.op_type == "Identity" and node.input[0] in constants:
            aliases[node.output[0]] = node.input[0]
        elif node.op_type == "QuantizeLinear" and all(name in constants for name in node.input[1:]):
            scale, zero = (numpy_helper.to_array(constants[name]).tobytes() for name in node.input[1:3])
            key = (node.input[0], scale, zero)
            if key in seen:
                aliases[node.output[0]] = seen[key]
            else:
                seen[key] = node.output[0]
                kept.append(node)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unused(model)


def _value(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant":
        return None
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
