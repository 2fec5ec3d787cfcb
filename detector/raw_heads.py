"""YOLOv5's raw heads instead of its decoded output: the engine ends there, and only what may be an object is decoded.

Exporters append the decoding to the network: of thousands of cells a picture, a few hold anything. Here the graph is
cut behind the convolutions, (batch, 3 * values, height, width) logits a level with values = 5 + classes, and one
comparison of the objectness planes leaves the candidates. YOLOv5's published decoding, with t the logits:

    xy = (2 sigmoid(t) - 0.5 + cell) * stride
    wh = (2 sigmoid(t))^2 * anchor
    score = sigmoid(t_objectness) * sigmoid(t_class)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import helper
from onnx.onnx_ml_pb2 import TensorProto

from detector.errors import EngineRefused
from detector.heads import ANCHORS, NOT_FINITE, Array, Candidates, best_class, nothing
from detector.prepare.graph import Graph

# Objectness is compared as a logit first: this much lower, so that rounding loses nothing there. The score decides.
_MARGIN = 1e-3


class RawHeads(Struct, frozen=True):
    """Where a model's raw heads are and how they decode, at any batch and shape. One entry a level, finest first."""

    tensors: list[str]  # names in the graph
    strides: list[int]
    anchors: list[list[tuple[float, float]]]  # (width, height) in pixels of the input
    class_count: int

    @property
    def values(self) -> int:
        """Numbers a prediction has: box, objectness, classes."""
        return 5 + self.class_count

    def shapes(self, batch: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Of the tensors, for a picture of height x width pixels."""
        return [(batch, ANCHORS * self.values, height // stride, width // stride) for stride in self.strides]


def cut(onnx: bytes, raw: RawHeads, batch: int, height: int, width: int) -> bytes:
    """The graph of `Model.with_shape` with the raw heads as its only outputs, in their order."""
    graph = Graph(onnx)
    outputs = graph.proto.graph.output
    del outputs[:]
    for name, shape in zip(raw.tensors, raw.shapes(batch, height, width), strict=True):
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.clean()
    return graph.to_bytes()


class RawHead:
    """Reads candidates from raw heads at one batch and shape; stands where `heads.Head` does. Not thread-safe.

    Right after an inference the caches hold the network, and each NumPy call costs some 10 us of fetching its code
    whatever it does. So objectness is gathered to one row first, and everything else is looked up by place in it.
    """

    has_nms = False

    def __init__(self, raw: RawHeads, batch: int, height: int, width: int) -> None:
        self._raw = raw
        self._shapes = raw.shapes(batch, height, width)
        levels = [_Level(*level, raw.values) for level in zip(raw.strides, raw.anchors, self._shapes, strict=True)]
        self._levels = levels
        self._objectness = np.empty(sum(level.count for level in levels), np.float32)
        ends = np.cumsum([level.count for level in levels]).tolist()
        starts = [0, *ends[:-1]]
        self._bounds = np.array(ends[:-1], np.int64)
        self._parts = [
            self._objectness[start:end].reshape(batch, ANCHORS, -1) for start, end in zip(starts, ends, strict=True)
        ]
        # By place in the row of objectness: the prediction's picture, its logits in its level's output, its cell.
        self._pictures = np.concatenate([level.pictures for level in levels])
        self._firsts = np.concatenate([level.firsts for level in levels])
        self._cells = np.concatenate([np.tile(level.cells, (batch, 1)) for level in levels])
        self._batch = batch

    def check(self, outputs: Sequence[Array]) -> None:
        """Raise EngineRefused where an engine's outputs are not these heads."""
        found = [(tuple(output.shape), output.dtype.name) for output in outputs]
        wanted = [(shape, "float32") for shape in self._shapes]
        if found != wanted:
            raise EngineRefused(f"the engine's raw heads are {found}, expected {wanted}")

    def decode(self, outputs: Sequence[Array], conf_thres: float, pictures: int = 1) -> Candidates:
        """As `heads.Head.decode`; of one picture or all of them."""
        for part, level, output in zip(self._parts, self._levels, outputs, strict=True):
            np.copyto(part, output.reshape(level.split)[:, :, 4])
        if not math.isfinite(np.add.reduce(self._objectness)):
            raise EngineRefused(NOT_FINITE)
        lowest = math.log(conf_thres / (1 - conf_thres)) - _MARGIN if conf_thres > 0 else -math.inf
        places = np.flatnonzero(self._objectness > lowest)
        if pictures < self._batch:
            places = places[self._pictures[places] < pictures]
        if not len(places):
            return nothing()
        firsts = self._firsts[places].reshape(-1, 1)
        ends = [*np.searchsorted(places, self._bounds).tolist(), len(places)]
        rows, start = [], 0
        for level, output, end in zip(self._levels, outputs, ends, strict=True):
            if end > start:
                rows.append(output.reshape(-1)[firsts[start:end] + level.steps])
            start = end
        shares = _sigmoid(np.concatenate(rows))
        boxes = _boxes(shares, self._cells[places])
        return best_class(boxes, shares[:, 5:] * shares[:, 4:5], conf_thres, self._pictures[places])

    def decode_all(self, outputs: Sequence[Array]) -> NDArray[np.float32]:
        """All predictions as YOLOv5's decoded output has them: (batch, predictions, values)."""
        rows = []
        for level, output in zip(self._levels, outputs, strict=True):
            turned = output.reshape(level.split).transpose(0, 1, 3, 2)
            shares = _sigmoid(turned.reshape(len(output), len(level.cells), -1))
            shares[..., :4] = _boxes(shares, level.cells)
            rows.append(shares)
        return np.concatenate(rows, axis=1)


class _Level:
    """One level of a batch. Predictions go picture by picture, anchor by anchor, row by row."""

    def __init__(
        self, stride: int, anchors: Sequence[tuple[float, float]], shape: tuple[int, int, int, int], values: int
    ) -> None:
        batch, _, height, width = shape
        self.split = batch, len(anchors), values, height * width
        self.count = batch * len(anchors) * height * width
        # Of one picture, (predictions, 5): left and top of what a centre can be, the anchor's sides, the stride.
        table = np.empty((len(anchors), height, width, 5), np.float32)
        table[..., 0] = (np.arange(width) - 0.5) * stride
        table[..., 1] = (np.arange(height) - 0.5).reshape(-1, 1) * stride
        table[..., 2:4] = np.reshape(anchors, (-1, 1, 1, 2))
        table[..., 4] = stride
        self.cells = table.reshape(-1, 5)
        self.pictures = np.repeat(np.arange(batch), len(self.cells))
        # Where in the flat output a prediction's first logit lies, and how far from it all of them do.
        indices = np.arange(math.prod(shape)).reshape(self.split)
        self.firsts = indices[:, :, 0].reshape(-1)
        self.steps = indices[0, 0, :, 0] - indices[0, 0, 0, 0]


def _boxes(shares: Array, cells: Array) -> Array:
    """(..., 4) centre x and y, width and height in pixels, from sigmoids (..., values) and their rows of cells."""
    boxes: Array = 2 * shares[..., :4]
    boxes[..., 2:] *= boxes[..., 2:]
    boxes[..., 2:] *= cells[..., 2:4]
    boxes[..., :2] *= cells[..., 4:]
    boxes[..., :2] += cells[..., :2]
    return boxes


def _sigmoid(logits: Array) -> Array:
    # Of tanh, because exp overflows for logits below -88 and warns of it.
    half = np.tanh(0.5 * logits)
    half *= 0.5
    half += 0.5
    result: Array = half
    return result
