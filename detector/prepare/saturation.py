"""Signed 8-bit weights that an x86 CPU without VNNI multiplies right.

Such a CPU multiplies unsigned bytes (of a picture) with signed ones (weights) in pairs, and adds the two products in 16
bits, where what lies beyond 32767 becomes 32767 (VPMADDUBSW in Intel's manual, volume 2). OpenVINO uses it whatever
comes of it: the shipped pistols model then had 0.676 mAP@0.5 instead of 0.812. So weights get larger steps, by as much
as it takes that no pair of them can saturate, whatever the picture: once to twice, in that model 1.2 times on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto

from detector.errors import EngineRefused
from detector.prepare.graph import BY_CHANNEL, Array, Graph, attribute, make

# 255 * 128 = 32640 still fits. Each of a pair may be rounded up by less than one.
_PAIR = 127
_LANES = 4  # kernels lay the input channels side by side by fours; of another number, any two may meet
_WHOLE = ("QLinearConv", "QLinearMatMul")  # have weights, steps and zero points as inputs
_WEIGHTS, _ZERO = 3, 5


def narrow(weights: Array, *, alike: bool = False) -> tuple[Array, Array]:
    """(int8 weights of which no pair saturates, (out,) by how much their steps are larger) of int8 (out, in / groups,
    height, width) around zero. `alike`: every output channel by as much."""
    wide = weights.astype(np.int16)
    worst = np.maximum(_largest_pair(np.maximum(wide, 0)), _largest_pair(np.maximum(-wide, 0)))
    growth = np.maximum(worst / _PAIR, 1.0)
    if alike:
        growth = np.full_like(growth, growth.max())
    narrowed = weights.copy()
    for row in np.flatnonzero(growth > 1):
        narrowed[row] = _rounded(wide[row].reshape(-1) / growth[row]).reshape(weights.shape[1:])
    return narrowed, growth


def secure_weights(graph: Graph) -> int:
    """Weights that come through DequantizeLinear: of convolutions they are narrowed, others become floats.

    Returns how many. Raises EngineRefused for a node whose weights are in another form and could saturate.
    """
    new: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type in _WHOLE:
            weights, zero = graph.constant(node.input[_WEIGHTS]), graph.constant(node.input[_ZERO])
            if weights is None or (weights.dtype == np.int8 and (zero is None or not zero.any())):
                raise EngineRefused(
                    f"{node.op_type} {node.name or node.output[0]!r} would saturate on this CPU, which has no VNNI; "
                    "expected weights that are constants, with constant steps around zero"
                )
        if node.op_type == "DequantizeLinear" and (found := _dequantised(graph, node)) is not None:
            new |= _secured(graph, node, found)
    graph.replace_all(new)
    graph.clean()
    return len(new)


@dataclass(frozen=True)
class _Dequantised:
    """Constant int8 weights around zero, and the axis along which they have several steps."""

    weights: Array
    steps: Array
    axis: int


def _dequantised(graph: Graph, node: NodeProto) -> _Dequantised | None:
    steps = graph.constant(node.input[1])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.int8)
    weights = stored_weights(graph, node.input[0])
    if weights is None or steps is None or zero is None or weights.dtype != np.int8 or zero.any():
        return None
    return _Dequantised(weights, steps, int(attribute(node, "axis", 1)) % max(weights.ndim, 1))


def stored_weights(graph: Graph, name: str) -> Array | None:
    """Constant weights, also where the file has floats that QuantizeLinear rounds, as after quantised training."""
    quantise = graph.producer(name, "QuantizeLinear")
    if quantise is None:
        return graph.constant(name)
    floats, steps, *zero = [graph.constant(one) for one in quantise.input]
    if floats is None or steps is None or len(zero) != 1 or zero[0] is None or zero[0].dtype != np.int8:
        return None
    axis = int(attribute(quantise, "axis", 1)) % max(floats.ndim, 1)
    whole = np.rint(floats / _along(steps, axis, floats.ndim)) + _along(zero[0], axis, floats.ndim)
    return np.clip(whole, -128, 127).astype(np.int8)


def _secured(graph: Graph, node: NodeProto, found: _Dequantised) -> dict[str, list[NodeProto]]:
    result = node.output[0]
    readers = graph.readers(result)
    of_convolutions = result not in graph.outputs and all(
        reader.op_type == "Conv" and list(reader.input).index(result) == 1 for reader in readers
    )
    if not of_convolutions or (found.steps.size > 1 and found.axis != 0):
        floats = found.weights * _along(found.steps, found.axis, found.weights.ndim)
        return {result: [make("Identity", [graph.add_constant(floats.astype(found.steps.dtype), result)], result)]}
    by_channel = graph.opset >= BY_CHANNEL
    narrowed, growth = narrow(found.weights, alike=not by_channel)
    if (growth == 1).all():
        return {}
    larger = found.steps.reshape(-1) * growth if by_channel else found.steps * growth[0]
    parts = (narrowed, larger.astype(found.steps.dtype), np.zeros(larger.shape, np.int8))
    names = [graph.add_constant(part, result) for part in parts]
    axis = {"axis": 0} if by_channel else {}
    return {result: [make("DequantizeLinear", names, result, **axis)]}


def _along(values: Array, axis: int, dims: int) -> Array:
    """One number, or one for each place along an axis, to be multiplied with an array of so many dimensions."""
    return values.reshape([-1 if one == axis else 1 for one in range(dims)]) if values.size > 1 else values.reshape(())


def _largest_pair(sizes: Array) -> Array:
    """Largest sum of a pair in each output channel, of sizes (out, in / groups, height, width) of at least 0."""
    out, channels = sizes.shape[:2]
    if channels % _LANES:
        pair: Array = np.sort(sizes.reshape(out, -1), axis=1)[:, -2:].sum(axis=1)
        return pair
    pairs = sizes.reshape(out, channels // 2, 2, -1).sum(axis=2)
    largest: Array = pairs.reshape(out, -1).max(axis=1)
    return largest


def _rounded(exact: Array) -> Array:
    """Whole numbers whose sum is the exact one's, rounded; none is off by 1 or more, and zeros stay.

    What all of a channel's inputs have in common, their mean, is then multiplied as before: with each number rounded
    for itself the pistols model lost 0.007 mAP@0.5, and so 0.002.
    """
    whole = np.rint(exact)
    left = exact - whole
    missing = int(np.rint(left.sum()))
    if missing:
        # Those that were rounded off by most, towards what is missing.
        moved = np.argpartition(-left * np.sign(missing), abs(missing) - 1)[: abs(missing)]
        whole[moved] += np.sign(missing)
    rounded: Array = whole
    return rounded
