"""Convolutions of integers, as the trainer exports them, in the form that each engine runs fast.

The trainer's form is DeepSparse's. Measured with a quantised YOLOv5n at 416x416, one core with VNNI, in turns:
- ONNX Runtime has a kernel for unsigned weights only: 15.7 against 65.2 ms, bit-equal. As floats between
  QuantizeLinear and DequantizeLinear it takes 21.9 ms, with weights dequantised once 17.5 ms.
- OpenVINO runs ConvInteger and unsigned weights in floats, 15.0 ms, and knows 8 bits by their DequantizeLinear: 7.0 ms.
  What it adds up in floats is rounded to the next of 256 steps now and then.

The engines do this at load, so that one file serves all of them; on this model it takes 0.2 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto, TensorProto

from detector.prepare.graph import BY_CHANNEL, Array, Graph, attribute, clone, make
from detector.prepare.loosen import loosen_convolutions
from detector.prepare.saturation import narrow, secure_weights
from detector.prepare.unsigned import unsign_activations
from detector.prepare.weights import unsign_weights

_BYTE = 1 / 255  # what a picture's bytes stand for; any other would do, since the weights' steps are divided by it
_SHARE = 1 / 128  # what a 1 of the weights stands for: by a power of two nothing is rounded
_MIDDLE = 128


@dataclass(frozen=True)
class _Rescaled:
    """A convolution of integers, and what follows it up to float."""

    conv: NodeProto
    last: NodeProto
    zero: tuple[Array, ...]  # of what it reads: one number, or none where none is written
    weights: Array  # (out, in / groups, height, width), int8 or uint8
    middles: Array  # () or (out,) zero points of the weights, in their type
    steps: Array  # (out,) float64: what a 1 of the sum stands for
    bias: Array  # (out,) float64


def for_onnxruntime(onnx: bytes, *, saturates: bool) -> bytes:
    """ONNX bytes with unsigned weights in every ConvInteger; the same bytes where there is nothing to do. `saturates`:
    in other convolutions too, whose kernels for signed ones add up products in 16 bits on such a CPU."""
    if not is_quantised(onnx):
        return onnx
    graph = Graph(onnx)
    done = unsign_integer_weights(graph)
    if saturates:
        done += unsign_weights(graph)
    return graph.to_bytes() if done else onnx


def for_openvino(onnx: bytes, *, saturates: bool) -> bytes:
    """ONNX bytes with unsigned activations, and DequantizeLinear and Conv for every ConvInteger and QLinearConv; the
    same bytes where there is nothing to do. `saturates`: with weights for a CPU that adds up products in 16 bits;
    raises EngineRefused where they cannot be had."""
    if not is_quantised(onnx):
        return onnx
    graph = Graph(onnx)
    done = unsign_activations(graph) + loosen_convolutions(graph) + dequantise_integer_convs(graph, saturates=saturates)
    if saturates:
        done += secure_weights(graph)
    return graph.to_bytes() if done else onnx


def is_quantised(onnx: bytes) -> bool:
    """Whether there may be eight-bit operators in these ONNX bytes."""
    return any(kind in onnx for kind in (b"ConvInteger", b"QLinear", b"DequantizeLinear"))


def unsign_integer_weights(graph: Graph) -> int:
    """Signed weights w of a ConvInteger to unsigned ones w + 128, around a zero point that is as much higher. Exact.

    Returns how many.
    """
    done = 0
    for node in graph.nodes:
        if node.op_type != "ConvInteger":
            continue
        x, weights, _, middle = _operands(graph, node)
        if weights is None or weights.dtype != np.int8 or middle is None:
            continue
        unsigned = [(value.astype(np.int16) + _MIDDLE).astype(np.uint8) for value in (weights, middle)]
        names = [graph.add_constant(value, node.input[1]) for value in unsigned]
        zero_name = node.input[2] if len(node.input) > 2 else ""
        del node.input[:]
        node.input.extend([x, names[0], zero_name, names[1]])
        done += 1
    graph.index()
    graph.clean()
    return done


def dequantise_integer_convs(graph: Graph, *, saturates: bool) -> int:
    """ConvInteger, Add (bias), Cast and Mul (steps) to DequantizeLinear, Conv, Mul (steps) and Add (bias); the result
    keeps its name. Returns how many."""
    found = [_find(graph, node) for node in graph.nodes if node.op_type == "ConvInteger"]
    rescaled = [one for one in found if one is not None]
    graph.replace_all({one.last.output[0]: _float_conv(graph, one, saturates) for one in rescaled})
    graph.clean()
    return len(rescaled)


def _find(graph: Graph, conv: NodeProto) -> _Rescaled | None:
    """What to make of a ConvInteger, if it is rescaled to float by constants and nobody reads it before that."""
    _, weights, zero, middle = _operands(graph, conv)
    if weights is None or weights.ndim != 4 or zero is None or middle is None:
        return None
    channels = len(weights)
    bias: Array | None = np.zeros(channels)
    summed = conv.output[0]
    after = graph.only_reader(summed)
    if after is not None and after.op_type == "Add":
        bias = _beside(graph, after, summed, channels)
        summed = after.output[0]
        after = graph.only_reader(summed)
    if after is None or after.op_type != "Cast" or attribute(after, "to", 0) != TensorProto.FLOAT:
        return None
    last = graph.only_reader(after.output[0])
    steps = _beside(graph, last, after.output[0], channels) if last is not None and last.op_type == "Mul" else None
    # A scale is positive: engines take that for granted.
    if last is None or steps is None or bias is None or middle.size not in (1, channels) or not (steps > 0).all():
        return None
    middles = middle.reshape(()) if (middle == middle.flat[0]).all() else middle.reshape(-1)
    if middles.size > 1 and graph.opset < BY_CHANNEL:
        return None
    return _Rescaled(conv, last, zero, weights, middles, steps, bias * steps)


def _operands(graph: Graph, conv: NodeProto) -> tuple[str, Array | None, tuple[Array, ...] | None, Array | None]:
    """What it reads, its weights, and both zero points, which may not be written; None for what is computed."""
    x, weights_name, zero_name, middle_name = [*conv.input, "", ""][:4]
    weights, zero = graph.constant(weights_name), graph.constant(zero_name)
    zeros = None if zero_name and (zero is None or zero.size != 1) else () if zero is None else (zero.reshape(()),)
    if middle_name or weights is None:
        return x, weights, zeros, graph.constant(middle_name)
    return x, weights, zeros, np.zeros((), weights.dtype)


def _beside(graph: Graph, node: NodeProto, tensor: str, channels: int) -> Array | None:
    """The other operand of a node, where it is a constant with one number for each channel, or for all."""
    value = graph.constant(next((name for name in node.input if name != tensor), ""))
    if value is None or value.shape not in ((), (1,), (channels, 1, 1), (1, channels, 1, 1)):
        return None
    return np.broadcast_to(value.reshape(-1).astype(np.float64), channels)


def _float_conv(graph: Graph, found: _Rescaled, saturates: bool) -> list[NodeProto]:
    result, read = found.last.output[0], found.conv.input[0]
    quantise = graph.producer(read, "QuantizeLinear")
    scale = graph.constant(quantise.input[1]) if quantise is not None else None
    step = np.float32(scale.reshape(()) if scale is not None and scale.size == 1 else _BYTE)
    weights, middles, steps = found.weights, found.middles, found.steps
    if saturates and weights.dtype == np.int8 and not middles.any():
        weights, growth = narrow(weights)
        steps = steps * growth
    by_channel = {"axis": 0} if middles.size > 1 else {}

    def stored(value: Array, name: str) -> str:
        return graph.add_constant(value, f"{result}_{name}")

    def named(name: str) -> str:
        return graph.fresh(f"{result}_{name}")

    x = [read, stored(np.array(step), "step"), *(stored(zero, "zero") for zero in found.zero)]
    values = make("DequantizeLinear", x, named("values"))
    w = [stored(weights, "w"), stored(np.full(middles.shape, _SHARE, np.float32), "share"), stored(middles, "middles")]
    shares = make("DequantizeLinear", w, named("shares"), **by_channel)
    conv = make("Conv", [values.output[0], shares.output[0]], named("sums"))
    conv.attribute.extend(clone(entry) for entry in found.conv.attribute)
    factors = (steps / (np.float64(step) * _SHARE)).astype(np.float32).reshape(1, -1, 1, 1)
    scaled = make("Mul", [conv.output[0], stored(factors, "factors")], named("scaled"))
    bias = stored(found.bias.astype(np.float32).reshape(1, -1, 1, 1), "bias")
    return [values, shares, conv, scaled, make("Add", [scaled.output[0], bias], result)]
