"""Bytes in: the division by 255 moves into the graph, so that no float picture is made or copied outside."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper
from onnx.onnx_ml_pb2 import NodeProto, TensorProto

from detector.prepare.graph import Array, Graph, make

_BYTES = np.arange(256)


def take_bytes(graph: Graph) -> str:
    """Turn a float input of 0..1 into uint8 of 0..255.

    Where the picture is first quantised and that maps every byte to itself, the quantising goes too (exact). Else the
    bytes are cast, and divided by 255 in the weights of the first convolution or, failing that, by a node.
    """
    picture = graph.picture()
    kind = picture.type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return ""
    name = picture.name
    readers = graph.readers(name)
    if readers and all(_is_identity(graph, node) for node in readers):
        for node in readers:
            graph.reroute(node.output[0], name)
        picture.type.tensor_type.elem_type = TensorProto.UINT8
        graph.clean()
        return "the picture is read as bytes without quantising it"
    first = graph.only_reader(name)
    scaled = graph.fresh(f"{name}_float")
    cast = make("Cast", [name], scaled, to=kind)
    weight = _weights(graph, first) if kind == TensorProto.FLOAT else None
    picture.type.tensor_type.elem_type = TensorProto.UINT8
    graph.reroute(name, scaled)
    if first is not None and weight is not None:
        divided = weight.astype(np.float64) / 255
        reader = graph.readers(scaled)[0]
        reader.input[1] = graph.add_constant(divided.astype(np.float32), reader.input[1])
        graph.insert(graph.nodes[0], [cast])
        graph.clean()
        return "the picture is read as bytes, its division by 255 is in the first convolution's weights"
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float16
    whole = graph.fresh(f"{name}_whole")
    cast.output[0] = whole
    divisor = graph.add_constant(np.array(255, dtype), f"{name}_255")
    graph.insert(graph.nodes[0], [cast, make("Div", [whole, divisor], scaled)])
    graph.clean()
    return "the picture is read as bytes and divided by 255 inside"


def _is_identity(graph: Graph, node: NodeProto) -> bool:
    """Whether a QuantizeLinear gives every byte / 255 that same byte, as uint8."""
    if node.op_type != "QuantizeLinear" or node.output[0] in graph.outputs:
        return False
    scale = graph.constant(node.input[1])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 else np.array(0, np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
        return False
    floats = _BYTES.astype(np.float32) / np.float32(255)
    steps = np.rint(floats / scale.astype(np.float32).reshape(-1)[0]) + int(zero.reshape(-1)[0])
    return bool(np.array_equal(np.clip(steps, 0, 255), _BYTES))


def _weights(graph: Graph, node: NodeProto | None) -> Array | None:
    """The weights of a float convolution that is the picture's only reader and theirs."""
    if node is None or node.op_type != "Conv":
        return None
    weight = node.input[1]
    stored = {tensor.name: tensor for tensor in graph.proto.graph.initializer}.get(weight)
    if stored is None or len(graph.readers(weight)) != 1:
        return None
    value: Array = numpy_helper.to_array(stored)
    return value if value.dtype == np.float32 else None
