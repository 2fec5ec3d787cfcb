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
_CLIP_BY_INPUTS = 11  # opset from which Clip reads its ends


@dataclass(frozen=True)
class _Quantised:
    """A QLinearConv as constants."""

    conv: NodeProto
    dequantise: NodeProto | None  # what makes floats of its result, where that alone reads it
    step: float  # of the result's eight bits
    middle: Array  # their zero point
    zero: Array  # of what it reads: one number
    weights: Array  # (out, in / groups, height, width) int8, around 0
    steps: Array  # (1, out, 1, 1) float32: what a 1 of the sum stands for
    bias: Array | None  # (1, out, 1, 1) int32

    @property
    def result(self) -> str:
        """The tensor to make."""
        name: str = (self.dequantise or self.conv).output[0]
        return name


def loosen_convolutions(graph: Graph, *, swished: bool = False) -> int:
    """QLinearConv and the DequantizeLinear behind it to ConvInteger, Add (bias), Cast, Mul (steps); where others read
    the eight bits, QuantizeLinear makes them. `swished`: only where a hard-swish follows. Returns how many."""
    reads = {swish.x for node in graph.nodes if (swish := find_hard_swish(graph, node)) is not None}
    new: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        found = _quantised(graph, node) if node.op_type == "QLinearConv" else None
        if found is None or (swished and found.result not in reads):
            continue
        new[found.result] = _integer_conv(graph, found, limited=found.result not in reads)
    graph.replace_all(new)
    graph.clean()
    return len(new)


def _quantised(graph: Graph, conv: NodeProto) -> _Quantised | None:
    after = graph.only_reader(conv.output[0])
    values = [graph.constant(name) for name in conv.input[1:]]
    scale, zero, weights, weight_scale, weight_zero, step, result_zero = values[:7]
    bias = values[7] if len(values) > 7 else None
    if scale is None or zero is None or weights is None or weight_scale is None or weight_zero is None:
        return None
    if step is None or result_zero is None or step.size != 1:
        return None
    middle = _MIDDLE if weights.dtype == np.uint8 else 0
    if zero.size != 1 or weights.ndim != 4 or not (weight_zero == middle).all() or (bias is None) != (len(values) <= 7):
        return None
    steps = (scale.reshape(-1).astype(np.float64) * weight_scale.reshape(-1)).astype(np.float32)
    by_channel = (1, len(weights), 1, 1)
    return _Quantised(
        conv,
        after if after is not None and _undoes(graph, after, step, result_zero) else None,
        float(step.reshape(())),
        result_zero.reshape(()),
        zero.reshape(()),
        (weights.astype(np.int16) - middle).astype(np.int8),
        np.broadcast_to(steps.reshape(1, -1, 1, 1), by_channel),
        None if bias is None else bias.reshape(by_channel),
    )


def _undoes(graph: Graph, after: NodeProto, step: Array, zero: Array) -> bool:
    """Whether a node makes floats of a QLinearConv's result by the steps that it was rounded to."""
    if after.op_type != "DequantizeLinear" or len(after.input) <= 2 or graph.opset < _CLIP_BY_INPUTS:
        return False
    own_step, own_zero = graph.constant(after.input[1]), graph.constant(after.input[2])
    return (
        own_step is not None
        and own_zero is not None
        and (own_step.dtype, own_zero.dtype) == (step.dtype, zero.dtype)
        and np.array_equal(own_step.reshape(-1), step.reshape(-1))
        and np.array_equal(own_zero.reshape(-1), zero.reshape(-1))
    )


def _integer_conv(graph: Graph, found: _Quantised, *, limited: bool) -> list[NodeProto]:
    """`limited`: to the floats that eight bits can mean; quantisers leave a ReLU to that."""
    result = found.result

    def stored(value: Array, name: str) -> str:
        return graph.add_constant(value, f"{result}_{name}")

    # DeepSparse ends the process on a ConvInteger without the zero point of its weights.
    names = [stored(found.weights, "w"), stored(found.zero, "x0"), stored(np.zeros((), np.int8), "w0")]
    conv = make("ConvInteger", [found.conv.input[0], *names], graph.fresh(f"{result}_sum"))
    conv.attribute.extend(clone(entry) for entry in found.conv.attribute)
    nodes = [conv]
    if found.bias is not None:
        biased = [conv.output[0], stored(found.bias, "bias")]
        nodes.append(make("Add", biased, graph.fresh(f"{result}_biased")))
    nodes.append(make("Cast", [nodes[-1].output[0]], graph.fresh(f"{result}_float"), to=TensorProto.FLOAT))
    scaled = [nodes[-1].output[0], stored(found.steps, "steps")]
    if found.dequantise is not None and not limited:
        return [*nodes, make("Mul", scaled, result)]
    floats = graph.fresh(f"{result}_floats")
    nodes.append(make("Mul", scaled, floats))
    if found.dequantise is None:
        return [*nodes, make("QuantizeLinear", [floats, *found.conv.input[6:8]], result)]
    bits = np.iinfo(found.middle.dtype)
    ends = [np.array((end - int(found.middle)) * found.step, np.float32) for end in (bits.min, bits.max)]
    return [*nodes, make("Clip", [floats, stored(ends[0], "least"), stored(ends[1], "most")], result)]
