"""Signed INT8 weights: w - 128 around zero instead of w around 128. Exact.

The INT8 kernels of ONNX Runtime and OpenVINO multiply unsigned pictures with signed weights. SparseML writes unsigned
weights with zero point 128; with those ONNX Runtime runs a slower kernel (14.7 against 10.0 ms, reference YOLOv5n,
416x416, one core) and OpenVINO falls back to float32 (13.0 against 5.3 ms). DeepSparse runs both forms alike.

On a CPU without VNNI their signed kernels saturate in 16 bits (`saturation`). There ONNX Runtime gets unsigned weights
at load, which it multiplies exactly.
"""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper
from onnx.onnx_ml_pb2 import NodeProto

from detector.prepare.graph import Graph, clone
from detector.prepare.saturation import stored_weights

_MIDDLE = 128


def sign_weights(graph: Graph) -> str:
    """Unsigned weights of zero point 128 to signed ones of zero point 0, in QLinearConv and in DequantizeLinear."""
    places = [place for node in graph.nodes if (place := _weight_place(node)) is not None]
    weights = {tensor.name: tensor for tensor in graph.proto.graph.initializer}
    done: set[str] = set()
    for node, weight, zero in places:
        name, zero_name = node.input[weight], node.input[zero]
        value, middle = graph.constant(name), graph.constant(zero_name)
        if name not in weights or value is None or middle is None or value.dtype != np.uint8 or name in done:
            continue
        readers = graph.readers(name)
        if not (middle == _MIDDLE).all() or len(readers) != 1 or value.ndim < 2:
            continue
        weights[name].CopyFrom(numpy_helper.from_array((value.astype(np.int16) - _MIDDLE).astype(np.int8), name))
        node.input[zero] = graph.add_constant(np.zeros(middle.shape, np.int8), zero_name)
        done.add(name)
    graph.index()
    graph.clean()
    return f"{len(done)} unsigned weights" if done else ""


def unsign_weights(graph: Graph) -> int:
    """The way back: signed weights to unsigned ones w + 128, around zero points that are as much higher. Exact.

    Returns how many nodes got them.
    """
    new: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        weight, zero = (0, 2) if node.op_type == "DequantizeLinear" else (3, 5)
        if node.op_type not in ("DequantizeLinear", "QLinearConv", "QLinearMatMul"):
            continue
        value, steps = stored_weights(graph, node.input[weight]), graph.constant(node.input[weight + 1])
        if value is None or steps is None or value.dtype != np.int8:
            continue
        middle = graph.constant(node.input[zero]) if len(node.input) > zero else np.zeros(steps.shape, np.int8)
        if middle is None:
            continue
        changed = clone(node)
        del changed.input[zero:]
        names = [
            graph.add_constant((array.astype(np.int16) + _MIDDLE).astype(np.uint8), node.input[weight])
            for array in (value, middle)
        ]
        changed.input[weight] = names[0]
        changed.input.extend([names[1], *node.input[zero + 1 :]])
        new[node.output[0]] = [changed]
    graph.replace_all(new)
    graph.clean()
    return len(new)


def _weight_place(node: NodeProto) -> tuple[NodeProto, int, int] | None:
    """Where a node keeps a quantised weight and its zero point among its inputs."""
    if node.op_type == "QLinearConv":
        return node, 3, 5
    if node.op_type == "DequantizeLinear" and len(node.input) > 2:
        return node, 0, 2
    return None
