"""YOLOv5's head decoded before its transpose instead of after it.

As exported, each level is brought from (anchors * values, height, width) to rows of (anchors, height, width, values)
and decoded there, in runs of two floats. Decoded in the convolution's own layout the arithmetic runs along whole rows
of the picture, DeepSparse fuses it into the convolution, and one transpose at the end remains: 0.3 ms of 4.9 for the
reference YOLOv5n at 416x416 on one core.

Every exporter writes the decoding in other nodes, so they are not matched but measured. Decoding is elementwise in the
sigmoid s and at most quadratic, box = A s^2 + B s + C, with A and B constant per channel and C linear in the cell's
column and row: (2s - 0.5 + column) * stride, (2s)^2 * anchor, s. Three runs of the old nodes give the coefficients,
a fourth one on random numbers proves them, and where it does not the graph stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import helper
from onnx.onnx_ml_pb2 import ModelProto, NodeProto, TensorProto

from detector.errors import EngineRefused
from detector.prepare.graph import Array, Graph, attribute, clone, make
from detector.prepare.verify import ABSOLUTE, RELATIVE, session

_TO_ROWS = [0, 1, 3, 4, 2]  # (batch, anchors, values, height, width) to (batch, anchors, height, width, values)
_PROBE = (3, 4)  # height and width: small, different, and enough cells to tell columns from rows
_RANGE_OPSET = 11  # ONNX has Range from here on


@dataclass(frozen=True)
class _Level:
    """One level of a head as found in the graph."""

    raw: str  # the convolution's result, (batch, anchors * values, height, width)
    sigmoid: str  # (batch, anchors, height, width, values)
    decoded: str  # the same shape
    anchors: int
    values: int


@dataclass(frozen=True)
class _Decoding:
    """Coefficients per channel, each (anchors * values,)."""

    square: Array
    linear: Array
    constant: Array
    column: Array
    row: Array


def decode_before_transpose(graph: Graph) -> str:
    """Rewrite a YOLOv5 head; an empty answer where there is none or its decoding is not understood."""
    rows = graph.producer(graph.outputs[0], "Concat")
    if len(graph.outputs) != 1 or rows is None or graph.opset < _RANGE_OPSET or graph.opset >= 20:
        return ""
    levels = [_find_level(graph, name) for name in rows.input]
    decodings = [_measure(graph, level) if level is not None else None for level in levels]
    found = [(level, decoding) for level, decoding in zip(levels, decodings, strict=True) if level and decoding]
    if len(found) != len(rows.input):
        return ""
    new: list[NodeProto] = []
    results = []
    for level, decoding in found:
        result = graph.fresh(f"{level.raw}_rows")
        new += _decode(graph, level, decoding, result)
        results.append(result)
    graph.replace(rows, [*new, make("Concat", results, rows.output[0], axis=1)])
    graph.clean()
    return f"{len(found)} levels decoded before their transpose"


def _find_level(graph: Graph, rows: str) -> _Level | None:
    """From one input of the last Concat up to the convolution."""
    reshape = graph.producer(rows, "Reshape")
    if reshape is None:
        return None
    sigmoids = _sigmoids_above(graph, reshape.input[0])
    if len(sigmoids) != 1:
        return None
    transpose = graph.producer(sigmoids[0].input[0], "Transpose")
    if transpose is None or attribute(transpose, "perm", []) != _TO_ROWS:
        return None
    split = graph.producer(transpose.input[0], "Reshape")
    convolution = graph.producer(split.input[0], "Conv") if split is not None else None
    if split is None or convolution is None:
        return None
    weight = graph.constant(convolution.input[1])
    shape = _reshape_target(graph, split.input[1])
    if weight is None or shape is None or shape[0] * shape[1] != weight.shape[0]:
        return None
    return _Level(split.input[0], sigmoids[0].output[0], reshape.input[0], *shape)


def _reshape_target(graph: Graph, tensor: str) -> tuple[int, int] | None:
    """(anchors, values) of a Reshape to (batch, anchors, values, height, width), whose sizes may be computed."""
    parts = graph.producer(tensor, "Concat")
    sizes: list[int] = []
    for name in [tensor] if parts is None else parts.input:
        value = graph.constant(name)
        # One computed size a part; were it more, the products of sizes would not fit the convolution.
        sizes += [-1] if value is None else value.reshape(-1).astype(int).tolist()
    return (sizes[1], sizes[2]) if len(sizes) == 5 and sizes[1] > 0 and sizes[2] > 0 else None


def _sigmoids_above(graph: Graph, tensor: str) -> list[NodeProto]:
    """The nearest Sigmoids that a tensor is computed from."""
    found: dict[str, NodeProto] = {}
    seen = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        node = graph.producer(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Sigmoid":
            found[name] = node
        elif node.op_type != "Shape":  # what only depends on a shape carries no picture
            waiting.extend(node.input)
    return list(found.values())


def _measure(graph: Graph, level: _Level) -> _Decoding | None:
    """The coefficients of one level's decoding; None where it is not of that form."""
    height, width = _fixed_cells(graph, level) or _PROBE
    try:
        run = session(_decoding_alone(graph, level))
    except EngineRefused:
        return None
    inputs = {value.name for value in run.get_inputs()}
    shape = (1, level.anchors, height, width, level.values)
    raw = np.zeros((1, level.anchors * level.values, height, width), np.float32)

    def at(value: Array) -> Array:
        feed = {name: array for name, array in ((level.sigmoid, value), (level.raw, raw)) if name in inputs}
        result: Array = run.run(None, feed)[0].astype(np.float64)
        return result

    try:
        nothing, half, whole = (at(np.full(shape, value, np.float32)) for value in (0.0, 0.5, 1.0))
        random = np.random.default_rng(5).random(shape, dtype=np.float32)
        truth = at(random)
    except Exception:  # ONNX Runtime's exceptions share no base; a graph that does not run so is not of this form
        return None
    if not nothing.shape == truth.shape == shape:
        return None
    square = 2 * (whole - nothing) - 4 * (half - nothing)
    linear = (whole - nothing) - square
    # Cells along axes 2 and 3. What is constant per channel is read in the first cell.
    decoding = _Decoding(
        square[0, :, 0, 0].reshape(-1),
        linear[0, :, 0, 0].reshape(-1),
        nothing[0, :, 0, 0].reshape(-1),
        (nothing[0, :, 0, 1] - nothing[0, :, 0, 0]).reshape(-1),
        (nothing[0, :, 1, 0] - nothing[0, :, 0, 0]).reshape(-1),
    )
    error = np.abs(_evaluate(decoding, random.astype(np.float64)) - truth)
    # A tenth of what the whole model may differ by.
    return decoding if (error <= (ABSOLUTE + RELATIVE * np.abs(truth)) / 10).all() else None


def _evaluate(decoding: _Decoding, sigmoid: Array) -> Array:
    _, anchors, height, width, values = sigmoid.shape
    square, linear, constant, column, row = (
        coefficient.reshape(1, anchors, 1, 1, values)
        for coefficient in (
            decoding.square,
            decoding.linear,
            decoding.constant,
            decoding.column,
            decoding.row,
        )
    )
    x = np.arange(width).reshape(1, 1, 1, width, 1)
    y = np.arange(height).reshape(1, 1, height, 1, 1)
    result: Array = sigmoid * (sigmoid * square + linear) + constant + column * x + row * y
    return result


def _fixed_cells(graph: Graph, level: _Level) -> tuple[int, int] | None:
    """(height, width) of a level whose grid is a constant in the graph: probes must have its size."""
    split = next(node for node in graph.readers(level.raw) if node.op_type == "Reshape")
    shape = graph.constant(split.input[1])
    if shape is None or shape.size != 5 or shape[3] <= 1 or shape[4] <= 1:
        return None
    return int(shape[3]), int(shape[4])


def _decoding_alone(graph: Graph, level: _Level) -> bytes:
    """A model of only the nodes between the sigmoid and the decoded boxes; the raw tensor gives its shape."""
    wanted = {level.decoded}
    kept = []
    for node in reversed(graph.nodes):
        if any(name in wanted for name in node.output) and not {level.sigmoid, level.raw} & set(node.output):
            kept.append(clone(node))
            wanted.update(node.input)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
        for name, rank in ((level.sigmoid, 5), (level.raw, 4))
        if name in wanted
    ]
    alone = helper.make_graph(
        kept[::-1],
        "decoding",
        inputs,
        [helper.make_empty_tensor_value_info(level.decoded)],
        [clone(tensor) for tensor in graph.proto.graph.initializer if tensor.name in wanted],
    )
    model: ModelProto = helper.make_model(
        alone, opset_imports=graph.proto.opset_import, ir_version=graph.proto.ir_version
    )
    return bytes(model.SerializeToString())


def _decode(graph: Graph, level: _Level, decoding: _Decoding, result: str) -> list[NodeProto]:
    """Nodes from the convolution's result to rows (batch, anchors * cells, values), at any height and width."""
    channels = level.anchors * level.values

    def name(hint: str) -> str:
        return graph.fresh(f"{level.raw}_{hint}")

    def per_channel(value: Array, hint: str) -> str:
        return graph.add_constant(value.astype(np.float32).reshape(1, channels, 1, 1), f"{level.raw}_{hint}")

    def integers(*values: int) -> str:
        return graph.add_constant(np.array(values, np.int64), f"{level.raw}_sizes")

    new: list[NodeProto] = []

    def add(op: str, inputs: list[str], hint: str, **attributes: object) -> str:
        output = name(hint)
        new.append(make(op, inputs, output, **attributes))
        return output

    shape = add("Shape", [level.raw], "shape")
    zero, one = (graph.add_constant(np.array(value, np.int64), f"{level.raw}_{value}") for value in (0, 1))
    offset = per_channel(decoding.constant, "offset")
    for axis, view, step in ((3, (1, 1, 1, -1), decoding.column), (2, (1, 1, -1, 1), decoding.row)):
        place = graph.add_constant(np.array(axis, np.int64), f"{level.raw}_axis")
        size = add("Gather", [shape, place], "size", axis=0)
        cells = add("Cast", [add("Range", [zero, size, one], "cells")], "cells", to=TensorProto.FLOAT)
        along = add("Reshape", [cells, integers(*view)], "along")
        offset = add("Add", [offset, add("Mul", [along, per_channel(step, "step")], "steps")], "offset")
    sigmoid = add("Sigmoid", [level.raw], "sigmoid")
    slope = add("Mul", [sigmoid, per_channel(decoding.square, "square")], "slope")
    slope = add("Add", [slope, per_channel(decoding.linear, "linear")], "slope")
    boxes = add("Add", [add("Mul", [sigmoid, slope], "scaled"), offset], "boxes")
    split = add("Reshape", [boxes, integers(0, level.anchors, level.values, -1)], "split")
    turned = add("Transpose", [split], "turned", perm=[0, 1, 3, 2])
    new.append(make("Reshape", [turned, integers(0, -1, level.values)], result))
    return new
