"""Facts of a model file that explain its speed: size, nodes, how much of it is INT8, how many weights are zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from detector.model import Model

# Nodes that compute in, or go to and from, eight bits (QLinearConv, ConvInteger, QuantizeLinear...).
_QUANTISED = ("QLinear", "Integer", "QuantizeLinear", "DequantizeLinear")


def model_facts(model: Model) -> dict[str, Any]:
    """Plain facts. `zero_weights`: share of exact zeros among signed or floating weights of two or more dimensions.

    A checkpoint has no graph yet: its `nodes` and `quantised_nodes` are None.
    """
    kinds: list[str] | None = None
    if model.format == "onnx":
        graph = onnx.load_model_from_string(model.data).graph
        kinds = [node.op_type for node in graph.node]
        tensors = (numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) >= 2)
    else:
        from trainer.checkpoint import read_checkpoint  # PyTorch is only there for those who want it

        state = read_checkpoint(model.data, model.name).state
        tensors = (tensor.numpy() for tensor in state.values() if tensor.dim() >= 2)
    zeros = total = 0
    for weights in tensors:
        if weights.dtype != np.uint8:  # there zero is another number, the zero point
            zeros += int(weights.size - np.count_nonzero(weights))
            total += weights.size
    return {
        "name": model.name,
        "sha256": model.sha256,
        "bytes": len(model.data),
        "dtype": model.dtype,
        "nodes": None if kinds is None else len(kinds),
        "quantised_nodes": None if kinds is None else sum(any(mark in kind for mark in _QUANTISED) for kind in kinds),
        "zero_weights": round(zeros / total, 4) if total else None,
    }
