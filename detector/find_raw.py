"""Find a YOLOv5 graph's raw heads and solve its anchors, by numbers and not by how an exporter wrote the nodes.

The graph runs once on noise. A raw head is a tensor of the right shape whose sigmoid is the decoded output's scores;
anchors follow from decoded sizes, and in the end all of the decoded output must follow from the raw heads.
ONNX Runtime runs it, as in `detector.prepare.verify`. Only the child process of a trial does this.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper
from onnx.onnx_ml_pb2 import ModelProto, TensorProto

from detector.errors import EngineRefused
from detector.heads import ANCHORS, Array, Head
from detector.model import Model
from detector.prepare.verify import ABSOLUTE, RELATIVE, session
from detector.raw_heads import RawHead, RawHeads

_TINY = 1e-12  # of a cell that shows nothing: what follows is no anchor, and is found to be none


class NoRawHeads(Exception):
    """The decoded output has to be used; the message says why."""


def noise(model: Model, batch: int, height: int, width: int) -> Array:
    """An input tensor of seeded noise, which moves every output."""
    shape = model.tensor_shape(batch, height, width)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return pixels if model.dtype == "uint8" else (pixels / np.float32(255)).astype(model.dtype)


def find(model: Model, head: Head, batch: int, height: int, width: int) -> RawHeads:
    """The raw heads of a model with this decoded head; raises NoRawHeads."""
    if model.format != "onnx" or head.kind != "yolov5" or head.class_count is None:
        raise NoRawHeads("only YOLOv5 in ONNX has them")
    proto = onnx.load_model_from_string(model.with_shape(batch, height, width))
    decoded_name = proto.graph.output[head.outputs[0]].name
    values = 5 + head.class_count
    shapes = [(batch, ANCHORS * values, height // stride, width // stride) for stride in head.strides]
    named = _of_shapes(proto, shapes)
    if not all(named):
        raise NoRawHeads(f"the graph has no tensors of shapes {shapes}, or does not tell")
    names = [*(name for level in named for name in level), decoded_name]
    arrays = _run(proto, names, {model.input_name: noise(model, batch, height, width)})
    found = dict(zip(names, arrays, strict=True))
    decoded = found[decoded_name]
    tensors, anchors = [], []
    start = 0
    for level, shape in zip(named, shapes, strict=True):
        count = ANCHORS * shape[2] * shape[3]
        rows = decoded[:, start : start + count].reshape(batch, ANCHORS, -1, values)
        start += count
        logits = {name: found[name].reshape(batch, ANCHORS, values, -1).transpose(0, 1, 3, 2) for name in level}
        right = [name for name in level if close(_sigmoid(logits[name][..., 4:]), rows[..., 4:])]
        if not right:
            raise NoRawHeads(f"no tensor of shape {shape} has the decoded scores as its sigmoid")
        tensors.append(right[0])
        anchors.append(_anchors(_sigmoid(logits[right[0]][..., 2:4]), rows[..., 2:4]))
    raw = RawHeads(tensors, list(head.strides), anchors, head.class_count)
    verify(RawHead(raw, batch, height, width), [found[name] for name in tensors], decoded, "onnxruntime")
    return raw


def verify(head: RawHead, outputs: Sequence[Array], decoded: Array, engine: str) -> None:
    """Raise NoRawHeads where an engine's raw heads do not decode to its decoded output for the same picture."""
    again = head.decode_all(outputs)
    if not close(again, decoded):
        apart = float(np.abs(again.astype(np.float64) - decoded).max()) if again.shape == decoded.shape else np.inf
        raise NoRawHeads(f"decoded from its raw heads, the output on {engine} is off by {apart:.3g}")


def close(one: Array, other: Array) -> bool:
    """Equal within what preparation may change: 0.001 of a score, 0.04 pixels at 416."""
    return one.shape == other.shape and bool((np.abs(one - other) <= ABSOLUTE + RELATIVE * np.abs(other)).all())


def _of_shapes(proto: ModelProto, shapes: Sequence[tuple[int, ...]]) -> list[list[str]]:
    """Names of the float32 tensors of each of these shapes."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception as error:  # its exceptions share no base; a graph that cannot be inferred may well run
        raise NoRawHeads(f"its shapes cannot be inferred: {str(error)[:200]}") from error
    named: list[list[str]] = [[] for _ in shapes]
    for value in [*inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        if shape in shapes and tensor.elem_type == TensorProto.FLOAT:
            named[shapes.index(shape)].append(value.name)
    return named


def _run(proto: ModelProto, names: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
    """Tensors of a graph by name, whether outputs or not."""
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    try:
        arrays: list[Array] = session(proto.SerializeToString()).run(list(names), inputs)
    except EngineRefused as error:
        raise NoRawHeads(str(error)) from error
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise NoRawHeads(f"onnxruntime cannot run it: {str(error)[:200]}") from error
    return arrays


def _anchors(shares: Array, sizes: Array) -> list[tuple[float, float]]:
    """(width, height) of each anchor in pixels, each from the cell where it shows best."""
    anchors = []
    for anchor in range(ANCHORS):
        side = []
        for axis in range(2):
            share, size = shares[:, anchor, :, axis].ravel(), sizes[:, anchor, :, axis].ravel()
            best = int(share.argmax())
            side.append(float(size[best]) / max((2 * float(share[best])) ** 2, _TINY))
        anchors.append((side[0], side[1]))
    return anchors


def _sigmoid(logits: Array) -> Array:
    wide = np.clip(logits.astype(np.float64), -500, 500)
    result: Array = 1 / (1 + np.exp(-wide))
    return result
