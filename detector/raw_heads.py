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
    """Reads candidates from raw heads at one batch and shape; stands where `heads.Head` does."""

    has_nms = False

    def __init__(self, raw: RawHeads, batch: int, height: int, width: int) -> None:
        self._raw = raw
        self._shapes = raw.shapes(batch, height, width)
        self._places = [
            _places(stride, anchors, *shape[2:])
            for stride, anchors, shape in zip(raw.strides, raw.anchors, self._shapes, strict=True)
        ]

    def check(self, outputs: Sequence[Array]) -> None:
        """Raise EngineRefused where an engine's outputs are not these heads."""
        found = [tuple(output.shape) for output in outputs]
        if found != self._shapes:
            raise EngineRefused(f"the engine's raw heads are {found}, expected {self._shapes}")

    def decode(self, outputs: Sequence[Array], conf_thres: float, pictures: int = 1) -> Candidates:
        """As `heads.Head.decode`."""
        lowest = np.float32(math.log(conf_thres / (1 - conf_thres)) - _MARGIN if conf_thres > 0 else -np.inf)
        logits, places, numbers = [], [], []
        for output, level in zip(outputs, self._places, strict=True):
            anchored = output[:pictures].reshape(pictures, ANCHORS, self._raw.values, -1)
            objectness = anchored[:, :, 4]
            if not np.isfinite(objectness.sum()):
                raise EngineRefused(NOT_FINITE)
            picked = np.flatnonzero(objectness > lowest)
            if len(picked):
                number, prediction = np.divmod(picked, len(level))
                anchor, cell = np.divmod(prediction, anchored.shape[3])
                logits.append(anchored[number, anchor, :, cell])
                places.append(level[prediction])
                numbers.append(number)
        if not logits:
            return nothing()
        rows, where, of = np.concatenate(logits), np.concatenate(places), np.concatenate(numbers)
        shares = _sigmoid(rows)
        return best_class(_boxes(shares, where), shares[:, 5:] * shares[:, 4:5], conf_thres, of)

    def decode_all(self, outputs: Sequence[Array]) -> NDArray[np.float32]:
        """All predictions as YOLOv5's decoded output has them: (batch, predictions, values)."""
        levels = []
        for output, level in zip(outputs, self._places, strict=True):
            shape = len(output), ANCHORS, self._raw.values, -1
            shares = _sigmoid(output.reshape(shape).transpose(0, 1, 3, 2).reshape(len(output), len(level), -1))
            shares[..., :4] = _boxes(shares, level)
            levels.append(shares)
        return np.concatenate(levels, axis=1)


def _places(stride: int, anchors: Sequence[tuple[float, float]], height: int, width: int) -> NDArray[np.float32]:
    """(anchors * cells, 5) in the order of a level's planes: offset x and y, anchor width and height, and stride."""
    table = np.empty((len(anchors), height, width, 5), np.float32)
    table[..., 0] = (np.arange(width) - 0.5) * stride
    table[..., 1] = (np.arange(height) - 0.5).reshape(-1, 1) * stride
    table[..., 2:4] = np.reshape(anchors, (-1, 1, 1, 2))
    table[..., 4] = stride
    return table.reshape(-1, 5)


def _boxes(shares: Array, places: Array) -> Array:
    """(..., 4) centre x and y, width and height in pixels, from sigmoids (..., values) and their rows of `_places`."""
    doubled = 2 * shares[..., :4]
    doubled[..., 2:] *= doubled[..., 2:]
    doubled[..., :2] *= places[..., 4:]
    doubled[..., :2] += places[..., :2]
    doubled[..., 2:] *= places[..., 2:4]
    boxes: Array = doubled
    return boxes


def _sigmoid(logits: Array) -> Array:
    # Of tanh, because exp overflows for logits below -88 and warns of it.
    half = np.tanh(0.5 * logits)
    half *= 0.5
    half += 0.5
    result: Array = half
    return result
