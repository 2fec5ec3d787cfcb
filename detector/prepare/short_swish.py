"""Quantised convolutions and hard-swish in the form that DeepSparse runs fastest; it is done at load.

x * clip(x + 3, 0, 6) / 6 is z * clip(z + 3 / r, 0, r) with r the root of 6 and z = x / r: the division is gone, and the
one by r costs nothing where a factor makes x, as it does behind a ConvInteger (`loosen`). Measured:
docs/performance.md, "The graph that DeepSparse gets".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto

from detector.prepare.activations import HardSwish, find_hard_swish
from detector.prepare.graph import Graph, make
from detector.prepare.loosen import loosen_convolutions

_ROOT = math.sqrt(6.0)


def for_deepsparse(onnx: bytes) -> bytes:
    """ONNX bytes in that form; the same bytes where there is nothing to do."""
    if b"ConvInteger" not in onnx and b"QLinearConv" not in onnx:
        return onnx
    graph = Graph(onnx)
    return graph.to_bytes() if loosen_convolutions(graph, swished=True) + shorten_hard_swish(graph) else onnx


def shorten_hard_swish(graph: Graph) -> int:
    """Add-Clip-Mul-Div to Add-Clip-Mul wherever a constant factor makes what it reads; returns how many."""
    found = [one for node in graph.nodes if (one := find_hard_swish(graph, node)) is not None]
    new: dict[str, Sequence[NodeProto]] = {}
    for swish in found:
        factor = graph.producer(swish.x, "Mul")
        # Whoever else reads x would get it divided.
        if swish.form != "add-clip-mul-div" or factor is None or len(graph.readers(swish.x)) != 2:
            continue
        if swish.x in graph.outputs:
            continue
        steps = next((name for name in factor.input if graph.constant(name) is not None), None)
        if steps is not None:
            other = next(name for name in factor.input if name != steps)
            new |= _short(graph, swish, other, steps)
    graph.replace_all(new)
    graph.clean()
    return len(new) // 2


def _short(graph: Graph, swish: HardSwish, other: str, steps: str) -> dict[str, Sequence[NodeProto]]:
    value = graph.constant(steps)
    assert value is not None
    result = swish.last.output[0]
    divided = graph.add_constant((value / _ROOT).astype(value.dtype), steps)
    three, zero, root = (graph.add_constant(np.array(one, value.dtype), result) for one in (3 / _ROOT, 0, _ROOT))
    moved, clipped = graph.fresh(f"{result}_add"), graph.fresh(f"{result}_clip")
    return {
        swish.x: [make("Mul", [other, divided], swish.x)],
        result: [
            make("Add", [swish.x, three], moved),
            make("Clip", [moved, zero, root], clipped),
            make("Mul", [swish.x, clipped], result),
        ],
    }
