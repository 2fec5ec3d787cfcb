"""Quantised convolutions and hard-swish in the form that DeepSparse runs fastest; it is done at load.

Measured: see docs/performance.md, "The graph that DeepSparse gets".
- x * clip(x + 3, 0, 6) / 6 is z * clip(z + 3 / r, 0, r) with r the root of 6 and z = x / r: the division is
  gone, and the one by r costs nothing where a factor makes x.
- QLinearConv rounds its sums to eight bits, from which the activation is computed in floats. A ConvInteger with that
  factor after it spares this rounding, and its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto, TensorProto

from detector.prepare.activations import HardSwish, find_hard_swish
from detector.prepare.graph import Array, Graph, clone, make

_ROOT = math.sqrt(6.0)
_MIDDLE = 128  # zero of weights that are stored as uint8 and mean int8


def for_deepsparse(onnx: bytes) -> bytes:
    """ONNX bytes in that form; the same bytes where there is nothing to do."""
    if b"ConvInteger" not in onnx and b"QLinearConv" not in onnx:
        return onnx
    graph = Graph(onnx)
    return graph.to_bytes() if loosen_convolutions(graph) + shorten_hard_swish(graph) else onnx


@dataclass(frozen=True)
class _Quantised:
    """A QLinearConv whose result goes back to floats at once, as constants."""

    conv: NodeProto
    dequantise: NodeProto
    zero: Array  # of what it reads: one number
    weights: Array  # (out, in / groups, height, width) int8, around 0
    steps: Array  # (1, out, 1, 1) float32: what a 1 of the sum stands for
    bias: Array | None  # (1, out, 1, 1) int32


def loosen_convolutions(graph: Graph) -> int:
    """QLinearConv, DequantizeLinear, hard-swish to ConvInteger, Add (bias), Cast, Mul (steps), hard-swish.

    Returns how many.
    """
    swished = {swish.x for node in graph.nodes if (swish := find_hard_swish(graph, node)) is not None}
    quantised = [_quantised(graph, node) for node in graph.nodes if node.op_type == "QLinearConv"]
    loose = [one for one in quantised if one is not None and one.dequantise.output[0] in swished]
    graph.replace_all({one.dequantise.output[0]: _integer_conv(graph, one) for one in loose})
    graph.clean()
    return len(loose)


def shorten_hard_swish(graph: Graph) -> int:
    """Add-Clip-Mul-Div to Add-Clip-Mul wherever a constant factor makes what it reads; returns how many."""
    found = [one for node in graph.nodes if (one := find_hard_swish(graph, node)) is not None]
    new: dict[str, Sequence[NodeProto]] = {}
    for swish in found:
        factor = graph.producer(swish.x, "Mul")
        # Whoever else reads x would get it divided.
        if swish.form != "add-clip-mul-div" or factor is None or len(graph.readers(swish.x)) != 2:
            continue
        if swish.x in graph.outputs:
            continue
        steps = next((name for name in factor.input if graph.constant(name) is not None), None)
        if steps is not None:
            other = next(name for name in factor.input if name != steps)
            new |= _short(graph, swish, other, steps)
    graph.replace_all(new)
    graph.clean()
    return len(new) // 2


def _short(graph: Graph, swish: HardSwish, other: str, steps: str) -> dict[str, Sequence[NodeProto]]:
    value = graph.constant(steps)
    assert value is not None
    result = swish.last.output[0]
    divided = graph.add_constant((value / _ROOT).astype(value.dtype), steps)
    three, zero, root = (graph.add_constant(np.array(one, value.dtype), result) for one in (3 / _ROOT, 0, _ROOT))
    moved, clipped = graph.fresh(f"{result}_add"), graph.fresh(f"{result}_clip")
    return {
        swish.x: [make("Mul", [other, divided], swish.x)],
        result: [
            make("Add", [swish.x, three], moved),
            make("Clip", [moved, zero, root], clipped),
            make("Mul", [swish.x, clipped], result),
        ],
    }


def _quantised(graph: Graph, conv: NodeProto) -> _Quantised | None:
    after = graph.only_reader(conv.output[0])
    if after is None or after.op_type != "DequantizeLinear":
        return None
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
        after,
        zero.reshape(()),
        (weights.astype(np.int16) - middle).astype(np.int8),
        np.broadcast_to(steps.reshape(1, -1, 1, 1), by_channel),
        None if bias is None else bias.reshape(by_channel),
    )


def _integer_conv(graph: Graph, found: _Quantised) -> list[NodeProto]:
    result = found.dequantise.output[0]
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
    nodes.append(make("Mul", [nodes[-1].output[0], steps], result))
    return nodes
