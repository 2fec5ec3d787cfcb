"""Hard-swish in the form that each engine runs fastest: x * clip(x + 3, 0, 6) / 6, in one node, two or four.

The reference INT8 YOLOv5n at 416x416 on one core:
- DeepSparse fuses Add-Clip-Mul-Div into the convolution, HardSigmoid and Mul it does not (4.2 against 13.3 ms).
- ONNX Runtime runs either form node by node, so two nodes beat four (9.1 against 10.3 ms).
- OpenVINO compiles Add-Clip-Mul-Div into the code between two convolutions (5.3 ms; HardSigmoid and Mul 8.9 ms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto

from detector.prepare.graph import Graph, attribute, make

HardSwishForm = Literal["add-clip-mul-div", "hardsigmoid-mul"]

_CLIP_INPUTS = 11  # opset from which Clip has its bounds as inputs


@dataclass(frozen=True)
class HardSwish:
    """One found in a graph: what it reads and the node that makes its result."""

    x: str
    last: NodeProto
    form: str


def rewrite_hard_swish(graph: Graph, form: HardSwishForm) -> str:
    """Every hard-swish of another form into this one."""
    if graph.opset < _CLIP_INPUTS:
        return ""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        found = find_hard_swish(graph, node)
        if found is None or found.form == form:
            continue
        new = _add_clip_mul_div(graph, found) if form == "add-clip-mul-div" else _hard_sigmoid_mul(graph, found)
        current = graph.producer(found.last.output[0])
        assert current is not None
        graph.replace(current, new)
        counts[found.form] = counts.get(found.form, 0) + 1
    graph.clean()
    return "; ".join(f"{count} times {old} to {form}" for old, count in counts.items())


def find_hard_swish(graph: Graph, node: NodeProto) -> HardSwish | None:
    """The hard-swish that this node ends, if it ends one."""
    if node.op_type == "HardSwish":
        return HardSwish(node.input[0], node, "hardswish")
    if node.op_type == "Div" and graph.scalar(node.input[1]) == 6:
        return _found(graph, graph.producer(node.input[0], "Mul"), node, gate_divided=False)
    if node.op_type == "Mul":
        return _found(graph, node, node, gate_divided=True)
    return None


def _found(graph: Graph, product: NodeProto | None, last: NodeProto, *, gate_divided: bool) -> HardSwish | None:
    """x * gate where the gate is made from the same x."""
    if product is None:
        return None
    for x, gate in (product.input, list(product.input)[::-1]):
        if not gate_divided and _gate(graph, gate) == x:
            return HardSwish(x, last, "add-clip-mul-div")
        if gate_divided and _hard_sigmoid(graph, gate) == x:
            return HardSwish(x, last, "hardsigmoid-mul")
        divided = graph.producer(gate, "Div")
        if gate_divided and divided and graph.scalar(divided.input[1]) == 6 and _gate(graph, divided.input[0]) == x:
            return HardSwish(x, last, "add-clip-div-mul")
    return None


def _gate(graph: Graph, tensor: str) -> str | None:
    """x, where the tensor is clip(x + 3, 0, 6)."""
    clip = graph.producer(tensor, "Clip")
    if clip is None or len(clip.input) < 3 or (graph.scalar(clip.input[1]), graph.scalar(clip.input[2])) != (0, 6):
        return None
    add = graph.producer(clip.input[0], "Add")
    if add is None:
        return None
    for x, three in (add.input, list(add.input)[::-1]):
        if graph.scalar(three) == 3:
            return str(x)
    return None


def _hard_sigmoid(graph: Graph, tensor: str) -> str | None:
    """x, where the tensor is clip(x / 6 + 1/2, 0, 1)."""
    node = graph.producer(tensor, "HardSigmoid")
    if node is None:
        return None
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)  # the defaults are ONNX's
    return str(node.input[0]) if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5 else None


def _add_clip_mul_div(graph: Graph, found: HardSwish) -> list[NodeProto]:
    result = found.last.output[0]
    three, zero, six = (graph.add_constant(np.array(value, np.float32), f"{result}_{value}") for value in (3, 0, 6))
    moved, clipped, product = (graph.fresh(f"{result}_{name}") for name in ("add", "clip", "mul"))
    return [
        make("Add", [found.x, three], moved),
        make("Clip", [moved, zero, six], clipped),
        make("Mul", [found.x, clipped], product),
        make("Div", [product, six], result),
    ]


def _hard_sigmoid_mul(graph: Graph, found: HardSwish) -> list[NodeProto]:
    result = found.last.output[0]
    gate = graph.fresh(f"{result}_gate")
    return [
        make("HardSigmoid", [found.x], gate, alpha=float(np.float32(1 / 6)), beta=0.5),
        make("Mul", [found.x, gate], result),
    ]
