"""Signed eight-bit activations as unsigned ones: every zero point, of quantising and of undoing it, 128 higher. Exact.

OpenVINO (2026.4.1) reads signed ones wrongly: of a YOLOv5n that ONNX Runtime's `quantize_static` made with them (QInt8
activations and weights, QDQ) scores were off by up to 0.87, and with unsigned ones by 0.06.
"""

from __future__ import annotations

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto

from detector.prepare.graph import Graph, clone

_MIDDLE = 128


def unsign_activations(graph: Graph) -> int:
    """Change every QuantizeLinear to int8 that only DequantizeLinear reads; returns how many nodes."""
    new: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        # Weights that are rounded in the graph stay signed: it is what engines want of weights.
        is_activation = node.op_type == "QuantizeLinear" and graph.constant(node.input[0]) is None
        readers = graph.readers(node.output[0]) if is_activation else []
        if not readers or node.output[0] in graph.outputs or any(one.op_type != "DequantizeLinear" for one in readers):
            continue
        changed = [_unsigned(graph, one) for one in (node, *readers)]
        if all(one is not None for one in changed):
            new |= {one.output[0]: [one] for one in changed if one is not None}
    graph.replace_all(new)
    graph.clean()
    return len(new)


def _unsigned(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The node with its zero point 128 higher; None where that is no int8 constant."""
    middle = graph.constant(node.input[2]) if len(node.input) > 2 else None
    if middle is None or middle.dtype != np.int8:
        return None
    changed: NodeProto = clone(node)
    changed.input[2] = graph.add_constant((middle.astype(np.int16) + _MIDDLE).astype(np.uint8), node.input[2])
    return changed
