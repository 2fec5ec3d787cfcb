"""Whether an exported graph says what its network says, at the exported shape and at a rectangle.

Every exporter has rewritten some graph wrongly once, and a frozen grid shows only at another shape than the exported
one. ONNX Runtime is the judge: every Sparsecam has it, and it follows the ONNX text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import load_model_from_string
from torch import nn

from trainer.errors import ExportError

Array = NDArray[Any]


def fixed(onnx: bytes, shape: Sequence[int]) -> bytes:
    """The graph with its one input fixed to a shape."""
    proto = load_model_from_string(onnx)
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return bytes(proto.SerializeToString())


def run(onnx: bytes, pictures: Array) -> Array:
    """The decoded rows of uint8 pictures (batch, 3, h, w), by ONNX Runtime on one core; raises ExportError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors alone; they are raised as well
    try:
        session = onnxruntime.InferenceSession(fixed(onnx, pictures.shape), options, providers=["CPUExecutionProvider"])
        rows: Array = session.run(None, {session.get_inputs()[0].name: pictures})[0]
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise ExportError(f"ONNX Runtime does not run the exported graph: {str(error)[:500]}") from error
    return rows


def difference(onnx: bytes, network: nn.Module, pictures: Array) -> tuple[float, float]:
    """Largest difference of a box side (parts of the picture's longer side) and of a score, graph against network.

    `pictures` are uint8 (batch, 3, h, w), which `network` takes too; it gives decoded rows. Raises ExportError where
    the rows have another shape.
    """
    found = run(onnx, pictures)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(pictures)).numpy()
    if found.shape != wanted.shape:
        raise ExportError(f"the exported graph gives rows {found.shape} where the network gives {wanted.shape}")
    apart = np.abs(found - wanted)
    if not np.isfinite(apart).all():
        raise ExportError("the exported graph gives numbers that are not finite")
    return float(apart[..., :4].max()) / max(pictures.shape[2:]), float(apart[..., 4:].max())
