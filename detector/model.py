"""A model file as data: what goes in, what it says of itself, and for ONNX the same graph with another input shape."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from onnx.onnx_ml_pb2 import GraphProto, TensorProto, ValueInfoProto

from detector.engines import ModelFormat, engine_class
from detector.errors import ModelError
from detector.known import known_labels

Dtype = Literal["uint8", "float32", "float16"]
Layout = Literal["nchw", "nhwc"]

# protobuf itself ends at 2 GiB; the largest public YOLO (YOLOv5x6, fp32) has 0.56 GB, so 1 GiB takes every real model.
MAX_MODEL_BYTES = 1 << 30
# What protobuf raises for bytes that are no message; in Python alone, as here, also for names that are no text and for
# parts too deep in parts.
_MALFORMED = (DecodeError, UnicodeDecodeError, RecursionError)
CHECKPOINT_SUFFIXES = (".pt", ".pth")
_ZIP = b"PK\x03\x04"  # how `torch.save` files begin, and no ONNX does
DEFAULT_STRIDE = 32  # of the coarsest level of YOLOv5, v8 and v11
_DTYPES: dict[int, Dtype] = {
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
}
_EXPECTED = "expected one picture [batch, 3, height, width] or [batch, height, width, 3] of uint8, float16 or float32"


@dataclass(frozen=True)
class Model:
    """One model file, read and understood as far as its input. Sizes are None where the network leaves them open."""

    name: str  # the file's name, for people
    format: ModelFormat
    data: bytes
    sha256: str
    input_name: str
    dtype: Dtype
    layout: Layout
    batch: int | None
    height: int | None
    width: int | None
    stride: int
    labels: dict[int, str] | None
    image_size: tuple[int, int] | None  # (height, width) that the metadata name

    def tensor_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape of the input tensor in this model's layout."""
        return (batch, 3, height, width) if self.layout == "nchw" else (batch, height, width, 3)

    def tensor(self, batch: int, height: int, width: int, fill: int) -> np.ndarray[Any, np.dtype[Any]]:
        """An input tensor of one pixel value (0..255): uint8 as it is, floats scaled to 0..1."""
        value = fill if self.dtype == "uint8" else fill / 255
        return np.full(self.tensor_shape(batch, height, width), value, dtype=self.dtype)

    def with_shape(self, batch: int, height: int, width: int) -> bytes:
        """The same graph, its input fixed to this shape (pixels), as ONNX bytes; a checkpoint as it is, for any shape.

        Shapes recorded for the inside and the outputs are removed: they were those of the old input, and engines
        believe them ("Incompatible dimensions").
        """
        if self.format == "checkpoint":
            return self.data
        proto = onnx.load_model_from_string(self.data)
        graph = proto.graph
        del graph.value_info[:]
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")
        picture = next(value for value in graph.input if value.name == self.input_name)
        dims = picture.type.tensor_type.shape.dim
        for dim, size in zip(dims, self.tensor_shape(batch, height, width), strict=True):
            dim.dim_value = size
        return bytes(proto.SerializeToString())


def read_model(path: Path) -> Model:
    """Read a model file; raises ModelError saying what is wrong with it, EngineUnavailable for want of torch."""
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelError(f"{path}: {size} bytes is more than the {MAX_MODEL_BYTES} a model may have")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model: {error.strerror}") from error
    return parse_model(data, path.name)


def parse_model(data: bytes, name: str) -> Model:
    """Understand the bytes of a model file: ONNX, or a checkpoint. Raises as `read_model`."""
    if not data:
        raise ModelError(f"{name}: the file is empty; expected an ONNX model or a checkpoint")
    if data.startswith(_ZIP) or name.endswith(CHECKPOINT_SUFFIXES):
        return _checkpoint(data, name)
    try:
        proto = onnx.load_model_from_string(data)
    except _MALFORMED as error:
        raise ModelError(f"{name}: no ONNX file, or cut short ({len(data)} bytes); export or copy it again") from error
    graph = proto.graph
    # Cut right between two fields a file still parses; the version of the operators comes after the graph.
    if not graph.node or not graph.output or not proto.opset_import:
        raise ModelError(f"{name}: the file holds no whole network, it may be cut short; export or copy it again")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        raise ModelError(f"{name}: its weights are in another file; save the model with the weights inside")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    picture = _picture_input(graph, name)
    tensor = picture.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    layout: Layout = "nhwc" if dims[3] == 3 and dims[1] != 3 else "nchw"
    height, width = (dims[2], dims[3]) if layout == "nchw" else (dims[1], dims[2])
    return Model(
        name=name,
        format="onnx",
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        input_name=picture.name,
        dtype=_DTYPES[tensor.elem_type],
        layout=layout,
        batch=dims[0],
        height=height,
        width=width,
        stride=_stride(metadata),
        labels=_labels(metadata) or known_labels(graph.initializer),
        image_size=_image_size(metadata),
    )


def _checkpoint(data: bytes, name: str) -> Model:
    """A checkpoint, read by the engine that runs it: nothing else here knows PyTorch."""
    engine_class("torch")  # says in words that it is missing
    from detector.engines.torch import CheckpointError, read_checkpoint

    try:
        checkpoint = read_checkpoint(data, name)
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    return Model(
        name=name,
        format="checkpoint",
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        input_name="images",
        dtype="uint8",
        layout="nchw",
        batch=None,
        height=None,
        width=None,
        stride=max(checkpoint.strides),
        labels=checkpoint.labels,
        image_size=checkpoint.image_size,
    )


def _picture_input(graph: GraphProto, name: str) -> ValueInfoProto:
    weights = {tensor.name for tensor in graph.initializer}
    inputs: list[ValueInfoProto] = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"{name}: {len(inputs)} inputs {[value.name for value in inputs]}; {_EXPECTED}")
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
    if len(dims) != 4 or 3 not in (dims[1], dims[3]):
        raise ModelError(f"{name}: input {inputs[0].name!r} has shape {dims}; {_EXPECTED}")
    if tensor.elem_type not in _DTYPES:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(f"{name}: input {inputs[0].name!r} is {kind}; {_EXPECTED}")
    return inputs[0]


def _literal(text: str) -> object:
    """A metadata value: JSON, or a Python literal as exporters write it; None where it is neither."""
    if len(text) > 1_000_000:  # a table of ten thousand class names is a tenth of this
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value: object = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what either may raise on bad text
            continue
        return value
    return None


def _labels(metadata: dict[str, str]) -> dict[int, str] | None:
    value = _literal(metadata.get("names", ""))
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return None
    try:
        return {int(number): str(label) for number, label in value.items()}
    except (TypeError, ValueError):
        return None


def _stride(metadata: dict[str, str]) -> int:
    value = _literal(metadata.get("stride", ""))
    if isinstance(value, list | tuple) and value:
        value = max((step for step in value if isinstance(step, int | float)), default=0)
    # 8 and 256 bound the coarsest level of any public YOLO (32 or 64) with room on both sides.
    if isinstance(value, int | float) and 8 <= value <= 256 and value == int(value):
        return int(value)
    return DEFAULT_STRIDE


def _image_size(metadata: dict[str, str]) -> tuple[int, int] | None:
    value = _literal(metadata.get("imgsz", ""))
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) and 0 < n <= 8192 for n in value):
        return int(value[0]), int(value[1])
    return None
