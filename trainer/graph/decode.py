"""YOLOv5's decoding as ONNX nodes behind the raw heads, at whatever batch, height and width the graph runs.

With s the sigmoid of a raw output the published formulas are quadratic in s, a channel having constant factors:

    centre = (2 s - 0.5 + cell) * stride, size = (2 s)^2 * anchor, objectness and classes = s
    row    = s * (square * s + linear) + constant + column * cell_x + row * cell_y

So the arithmetic runs in the convolution's own layout, along whole rows of the picture, and one transpose follows;
DeepSparse fuses it into the convolution. PyTorch's exporter would write a transpose first and freeze the grid of the
exported shape; here the grid is computed from the raw head's shape, which engines fold once the shape is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_ml_pb2 import GraphProto, TensorProto

Array = NDArray[Any]


def append_decoding(
    graph: GraphProto, raw: Sequence[str], *, strides: Sequence[int], anchors: Array, classes: int, output: str
) -> None:
    """Make `output` the graph's only output: decoded rows (batch, predictions, 5 + classes) of float32.

    `raw` names a tensor (batch, anchors * (5 + classes), h, w) for each level, `strides` are in pixels, `anchors` are
    (levels, anchors, 2), width and height in pixels. Rows go level by level, anchor by anchor, line by line.
    """
    levels = [
        _Level(graph, name, stride, level, classes).rows()
        for name, stride, level in zip(raw, strides, anchors, strict=True)
    ]
    graph.node.append(helper.make_node("Concat", levels, [output], name=f"{output}_concat", axis=1))
    del graph.output[:]
    shape: list[str | int | None] = ["batch", "predictions", 5 + classes]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))


class _Level:
    """The nodes of one level, added to the graph as they are asked for; names begin with the raw head's."""

    def __init__(self, graph: GraphProto, raw: str, stride: int, anchors: Array, classes: int) -> None:
        self._graph, self._raw, self._stride, self._anchors = graph, raw, stride, anchors
        self._values = 5 + classes
        self._count = 0

    def rows(self) -> str:
        """Name of the level's decoded rows (batch, anchors * h * w, values)."""
        square, linear, constant, column, row = self._factors()
        shape = self._node("Shape", [self._raw])
        across = self._node("Mul", [self._cells(shape, axis=3, view=(1, 1, 1, -1)), self._per_channel(column)])
        down = self._node("Mul", [self._cells(shape, axis=2, view=(1, 1, -1, 1)), self._per_channel(row)])
        offset = self._node("Add", [self._node("Add", [self._per_channel(constant), across]), down])
        s = self._node("Sigmoid", [self._raw])
        slope = self._node("Add", [self._node("Mul", [s, self._per_channel(square)]), self._per_channel(linear)])
        decoded = self._node("Add", [self._node("Mul", [s, slope]), offset])
        # In Reshape 0 keeps the size of that place.
        split = self._node("Reshape", [decoded, self._integers(0, len(self._anchors), self._values, -1)])
        turned = self._node("Transpose", [split], perm=[0, 1, 3, 2])
        return self._node("Reshape", [turned, self._integers(0, -1, self._values)])

    def _factors(self) -> tuple[Array, Array, Array, Array, Array]:
        """Square, linear, constant, column and row factors, each (anchors, values)."""
        square, linear, constant, column, row = np.zeros((5, len(self._anchors), self._values), np.float32)
        linear[:, :2] = 2 * self._stride
        constant[:, :2] = -0.5 * self._stride
        column[:, 0] = row[:, 1] = self._stride
        square[:, 2:4] = 4 * self._anchors
        linear[:, 4:] = 1
        return square, linear, constant, column, row

    def _cells(self, shape: str, axis: int, view: tuple[int, ...]) -> str:
        """0, 1, 2... along an axis of the raw head."""
        size = self._node("Gather", [shape, self._constant(np.array(axis, np.int64))], axis=0)
        zero, one = (self._constant(np.array(value, np.int64)) for value in (0, 1))
        cells = self._node("Cast", [self._node("Range", [zero, size, one])], to=TensorProto.FLOAT)
        return self._node("Reshape", [cells, self._integers(*view)])

    def _per_channel(self, factors: Array) -> str:
        return self._constant(factors.reshape(1, -1, 1, 1))

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: Array) -> str:
        name = self._name("constant")
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = self._name(op.lower())
        self._graph.node.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._raw}/{what}_{self._count}"
