"""QLinearConv to ConvInteger, which adds up to 32 bits and leaves the rounding to eight of them out.

QLinearConv rounds its sums to eight bits; where an activation is then computed in floats, this costs time and accuracy
for nothing. Done at load, for the engines that run the form without it faster (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto, TensorProto

from detector.prepare.activations import find_hard_swish
from detector.prepare.graph import Array, Graph, clone, make

_MIDDLE = 128  # zero of weights that are stored as uint8 and mean int8


@dataclass(frozen=True)
class _Quantised:
    """A QLinearConv as constants."""

    conv: NodeProto
    dequantise: NodeProto | None  # what makes floats of its result, where that alone reads it
    zero: Array  # of what it reads: one number
    weights: Array  # (out, in / groups, height, width) int8, around 0
    steps: Array  # (1, out, 1, 1) float32: what a 1 of the sum stands for
    bias: Array | None  # (1, out, 1, 1) int32


def loosen_convolutions(graph: Graph, *, swished: bool = False) -> int:
    """QLinearConv and the DequantizeLinear behind it to ConvInteger, Add (bias), Cast, Mul (steps); where others read
    the eight bits, QuantizeLinear makes them. `swished`: only where a hard-swish follows. Returns how many."""
    found = [one for node in graph.nodes if node.op_type == "QLinearConv" and (one := _quantised(graph, node))]
    if swished:
        reads = {swish.x for node in graph.nodes if (swish := find_hard_swish(graph, node)) is not None}
        found = [one for one in found if one.dequantise is not None and one.dequantise.output[0] in reads]
    graph.replace_all({(one.dequantise or one.conv).output[0]: _integer_conv(graph, one) for one in found})
    graph.clean()
    return len(found)


def _quantised(graph: Graph, conv: NodeProto) -> _Quantised | None:
    after = graph.only_reader(conv.output[0])
    values = [graph.constant(name) for name in conv.input[1:]]
    scale, zero, weights, weight_scale, weight_zero = values[:5]
    bias = values[7] if len(values) > 7 else None
    if scale is None or zero is None or weights is None or weight_scale is None or weight_zero is None:
        return None
    middle = _MIDDLE if weights.dtype == np.uint8 else 0
    if zero.size != 1 or weights.ndim != 4 or not (weight_zero == middle).all() or (bias is None) != (len(values) <= 7):
        return None
    steps = (scale.reshape(-1).astype(np.float64) * weight_scale.reshape(-1)).astype(np.float32)
    by_channel = (1, len(weights), 1, 1)
    return _Quantised(
        conv,
        after if after is not None and after.op_type == "DequantizeLinear" else None,
        zero.reshape(()),
        (weights.astype(np.int16) - middle).astype(np.int8),
        np.broadcast_to(steps.reshape(1, -1, 1, 1), by_channel),
        None if bias is None else bias.reshape(by_channel),
    )


def _integer_conv(graph: Graph, found: _Quantised) -> list[NodeProto]:
    result = (found.dequantise or found.conv).output[0]
    # DeepSparse ends the process on a ConvInteger without the zero point of its weights.
    parts = (found.weights, found.zero, np.zeros((), np.int8))
    names = [graph.add_constant(part, f"{result}_{name}") for part, name in zip(parts, ("w", "x0", "w0"), strict=True)]
    conv = make("ConvInteger", [found.conv.input[0], *names], graph.fresh(f"{result}_sum"))
    conv.attribute.extend(clone(entry) for entry in found.conv.attribute)
    nodes = [conv]
    if found.bias is not None:
        bias = graph.add_constant(found.bias, f"{result}_bias")
        nodes.append(make("Add", [conv.output[0], bias], graph.fresh(f"{result}_biased")))
    nodes.append(make("Cast", [nodes[-1].output[0]], graph.fresh(f"{result}_float"), to=TensorProto.FLOAT))
    steps = graph.add_constant(found.steps, f"{result}_steps")
    floats = result if found.dequantise is not None else graph.fresh(f"{result}_floats")
    nodes.append(make("Mul", [nodes[-1].output[0], steps], floats))
    if found.dequantise is None:
        nodes.append(make("QuantizeLinear", [floats, *found.conv.input[6:8]], result))
    return nodes
