"""Convolutions of integers, as the trainer exports them, in the form that each engine runs fast.

The trainer's form is DeepSparse's. Measured with a quantised YOLOv5n at 416x416, one core with VNNI, in turns:
- ONNX Runtime has a kernel for unsigned weights only: 15.7 against 65.2 ms, bit-equal. As floats between
  QuantizeLinear and DequantizeLinear it takes 21.9 ms, with weights dequantised once 17.5 ms.
- OpenVINO runs ConvInteger in floats, 15.0 ms, and knows 8 bits by their DequantizeLinear: 7.0 ms. What it adds up in
  floats is rounded to the next of 256 steps now and then.

The engines do this at load, so that one file serves all of them; on this model it takes 0.1 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto, TensorProto

from detector.prepare.graph import Array, Graph, attribute, clone, make

_BY_CHANNEL = 13  # opset from which DequantizeLinear takes a scale for each channel
_BYTE = 1 / 255  # what a picture's bytes stand for; any other would do, since the weights' steps are divided by it
_MIDDLE = 128


@dataclass(frozen=True)
class _Rescaled:
    """A convolution of integers, and what follows it up to float."""

    conv: NodeProto
    last: NodeProto
    zero: tuple[Array, ...]  # of what it reads: one number, or none where none is written
    weights: Array  # (out, in / groups, height, width), int8 or uint8
    middles: Array  # (out,) zero points of the weights, in their type
    steps: Array  # (out,) float64: what a 1 of the sum stands for
    bias: Array  # (out,) float64


def for_onnxruntime(onnx: bytes) -> bytes:
    """ONNX bytes with unsigned weights in every ConvInteger; the same bytes where there is nothing to do."""
    return _rewritten(onnx, unsign_integer_weights)


def for_openvino(onnx: bytes) -> bytes:
    """ONNX bytes with DequantizeLinear and Conv for every ConvInteger; the same bytes where there is nothing to do."""
    return _rewritten(onnx, dequantise_integer_convs)


def _rewritten(onnx: bytes, rewrite: Callable[[Graph], str]) -> bytes:
    if b"ConvInteger" not in onnx:
        return onnx
    graph = Graph(onnx)
    return graph.to_bytes() if rewrite(graph) else onnx


def unsign_integer_weights(graph: Graph) -> str:
    """Signed weights w of a ConvInteger to unsigned ones w + 128, around a zero point that is as much higher. Exact."""
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
    return f"{done} weights of integers" if done else ""


def dequantise_integer_convs(graph: Graph) -> str:
    """ConvInteger, Add (bias), Cast and Mul (steps) to DequantizeLinear and Conv; the result keeps its name."""
    if graph.opset < _BY_CHANNEL:
        return ""
    found = [_find(graph, node) for node in graph.nodes if node.op_type == "ConvInteger"]
    rescaled = [one for one in found if one is not None]
    graph.replace_all({one.last.output[0]: _float_conv(graph, one) for one in rescaled})
    graph.clean()
    return f"{len(rescaled)} convolutions of integers" if rescaled else ""


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
    middles = np.broadcast_to(middle.reshape(-1), channels)
    return _Rescaled(conv, last, zero, weights, middles, steps, bias * steps)


def _operands(graph: Graph, conv: NodeProto) -> tuple[str, Array | None, tuple[Array, ...] | None, Array | None]:
    """What it reads, its weights, and both zero points, which may not be written; None for what is computed."""
    x, weights_name, zero_name, middle_name = [*conv.input, "", ""][:4]
    weights, zero = _constant(graph, weights_name), _constant(graph, zero_name)
    zeros = None if zero_name and (zero is None or zero.size != 1) else () if zero is None else (zero.reshape(()),)
    if middle_name or weights is None:
        return x, weights, zeros, _constant(graph, middle_name)
    return x, weights, zeros, np.zeros((), weights.dtype)


def _beside(graph: Graph, node: NodeProto, tensor: str, channels: int) -> Array | None:
    """The other operand of a node, where it is a constant with one number for each channel, or for all."""
    value = _constant(graph, next((name for name in node.input if name != tensor), ""))
    if value is None or value.shape not in ((), (1,), (channels, 1, 1), (1, channels, 1, 1)):
        return None
    return np.broadcast_to(value.reshape(-1).astype(np.float64), channels)


def _constant(graph: Graph, name: str) -> Array | None:
    """As `Graph.constant`, also through Identity: PyTorch writes equal constants once and gives them several names."""
    while (node := graph.producer(name, "Identity")) is not None:
        name = node.input[0]
    return graph.constant(name)


def _float_conv(graph: Graph, found: _Rescaled) -> list[NodeProto]:
    result, read = found.last.output[0], found.conv.input[0]
    quantise = graph.producer(read, "QuantizeLinear")
    scale = _constant(graph, quantise.input[1]) if quantise is not None else None
    step = np.float32(scale.reshape(()) if scale is not None and scale.size == 1 else _BYTE)

    def dequantise(name: str, parts: tuple[str | Array, ...], **axis: int) -> NodeProto:
        stored = [part if isinstance(part, str) else graph.add_constant(part, f"{result}_{name}") for part in parts]
        return make("DequantizeLinear", stored, graph.fresh(f"{result}_{name}"), **axis)

    steps = (found.steps / np.float64(step)).astype(np.float32)
    values = dequantise("values", (read, np.array(step), *found.zero))
    weights = dequantise("weights", (found.weights, steps, found.middles), axis=0)
    bias = graph.add_constant(found.bias.astype(np.float32), f"{result}_bias")
    conv = make("Conv", [values.output[0], weights.output[0], bias], result)
    conv.attribute.extend(clone(entry) for entry in found.conv.attribute)
    return [values, weights, conv]
