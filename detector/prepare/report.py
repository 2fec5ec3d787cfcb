"""What preparing a model did, for people and (as plain dataclasses) for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto

from detector.prepare.graph import Array, Graph

BLOCK = 4  # weights along input channels that VNNI multiplies at once; only whole zero blocks save time in INT8


@dataclass(frozen=True)
class Step:
    """One rewrite: whether it was taken, and what it did or why not."""

    name: str
    taken: bool
    detail: str


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros in one convolution's weights."""

    layer: str
    shape: tuple[int, ...]
    zeros: float  # part of the weights, 0..1
    zero_blocks: float  # part of the blocks of four along input channels, 0..1


@dataclass(frozen=True)
class Measured:
    """One form of a model: its size, and how long a picture takes on each installed engine (milliseconds)."""

    nodes: int
    size_bytes: int
    ms: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # engine and why


@dataclass(frozen=True)
class Report:
    """The whole story of one preparation."""

    model: str
    engine: str
    batch: int
    height: int
    width: int
    rectangular: bool  # whether smaller heights and widths were compared as well and still run
    pictures: int  # compared at each shape
    largest_difference: float  # of the outputs, score or pixels
    steps: list[Step]
    before: Measured
    after: Measured
    layers: list[LayerSparsity]

    def to_builtins(self) -> dict[str, Any]:
        """As JSON wants it."""
        return asdict(self)


def sparsity(graph: Graph) -> list[LayerSparsity]:
    """Zeros of every convolution with constant weights, quantised or not, in the graph's order."""
    layers = []
    for node in graph.nodes:
        found = _weights(graph, node)
        if found is None:
            continue
        name, weight = found
        zero = weight == 0
        whole = zero.shape[1] // BLOCK * BLOCK  # what is left of a block at the end is not skipped
        blocks = zero[:, :whole].reshape(zero.shape[0], -1, BLOCK, *zero.shape[2:]).all(axis=2)
        layers.append(
            LayerSparsity(name, tuple(weight.shape), float(zero.mean()), float(blocks.mean()) if blocks.size else 0.0)
        )
    return layers


def _weights(graph: Graph, node: NodeProto) -> tuple[str, Array] | None:
    """A convolution's name and its weights, moved so that zero is zero."""
    if node.op_type == "QLinearConv":
        weight, zero = graph.constant(node.input[3]), graph.constant(node.input[5])
    elif node.op_type == "ConvInteger":
        weight = graph.constant(node.input[1])
        zero = graph.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    elif node.op_type == "Conv":
        dequantise = graph.producer(node.input[1], "DequantizeLinear")
        name = dequantise.input[0] if dequantise is not None else node.input[1]
        weight = graph.constant(name)
        zero = graph.constant(dequantise.input[2]) if dequantise is not None and len(dequantise.input) > 2 else None
    else:
        return None
    if weight is None or weight.ndim < 3:
        return None
    middle = np.array(0) if zero is None else zero.reshape(-1, *[1] * (weight.ndim - 1))
    moved = weight if zero is None else weight.astype(np.int16) - middle.astype(np.int16)
    return node.name or node.output[0], moved
