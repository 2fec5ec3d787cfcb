"""Signed 8-bit weights that an x86 CPU without VNNI multiplies right.

Such a CPU multiplies unsigned bytes (of a picture) with signed ones (weights) in pairs, and adds the two products in 16
bits, where what lies beyond 32767 becomes 32767 (VPMADDUBSW in Intel's manual, volume 2). OpenVINO uses it whatever
comes of it: the shipped pistols model then had 0.676 mAP@0.5 instead of 0.812. So weights get larger steps, by as much
as it takes that no pair of them can saturate, whatever the picture: once to twice, in that model 1.2 times on average.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import numpy as np
from onnx.onnx_ml_pb2 import NodeProto

from detector.prepare.graph import Array, Graph, attribute, make

# As /proc/cpuinfo calls the instructions that add up products of bytes in 32 bits.
WIDE_SUMS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
# 255 * 128 = 32640 still fits. Each of a pair may be rounded up by less than one.
_PAIR = 127
_LANES = 4  # kernels lay the input channels side by side by fours; of another number, any two may meet
_BY_CHANNEL = 13  # opset from which DequantizeLinear takes steps for each channel


@cache
def saturates() -> bool:
    """Whether this CPU is one of those."""
    try:
        return saturating(platform.machine(), Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return saturating(platform.machine(), "")


def saturating(machine: str, cpuinfo: str) -> bool:
    """Of an architecture as `platform.machine` calls it, and what /proc/cpuinfo says; an x86 of which it says nothing:
    yes."""
    if machine.lower() not in ("x86_64", "amd64", "i686"):
        return False
    flags = next((line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return WIDE_SUMS.isdisjoint(flags)


def narrow(weights: Array, *, alike: bool = False) -> tuple[Array, Array]:
    """(int8 weights of which no pair saturates, (out,) by how much their steps are larger) of int8 (out, in / groups,
    height, width) around zero. `alike`: every output channel by as much."""
    wide = weights.astype(np.int16)
    worst = np.maximum(_largest_pair(np.maximum(wide, 0)), _largest_pair(np.maximum(-wide, 0)))
    growth = np.maximum(worst / _PAIR, 1.0)
    if alike:
        growth = np.full_like(growth, growth.max())
    exact = wide.reshape(len(wide), -1) / growth[:, None]
    return _rounded(exact).astype(np.int8).reshape(weights.shape), growth


def narrow_dequantised(graph: Graph) -> int:
    """Narrow the weights that convolutions get through DequantizeLinear; returns how many."""
    by_channel = graph.opset >= _BY_CHANNEL
    new: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        found = _dequantised_weights(graph, node)
        if found is None:
            continue
        weights, steps = found
        narrowed, growth = narrow(weights, alike=not by_channel)
        if (growth == 1).all():
            continue
        larger = (
            (steps.reshape(-1) * growth).astype(steps.dtype) if by_channel else steps * growth[0].astype(steps.dtype)
        )
        parts = (narrowed, larger, np.zeros(larger.shape, np.int8))
        names = [graph.add_constant(part, node.output[0]) for part in parts]
        axis = {"axis": 0} if by_channel else {}
        new[node.output[0]] = [make("DequantizeLinear", names, node.output[0], **axis)]
    graph.replace_all(new)
    graph.clean()
    return len(new)


def _dequantised_weights(graph: Graph, node: NodeProto) -> tuple[Array, Array] | None:
    """(weights around zero, their steps) where a node dequantises the int8 weights of one convolution."""
    reader = graph.only_reader(node.output[0]) if node.op_type == "DequantizeLinear" else None
    if reader is None or reader.op_type != "Conv" or reader.input[1] != node.output[0]:
        return None
    weights, steps = (graph.constant(name) for name in node.input[:2])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.int8)
    if weights is None or steps is None or zero is None or weights.dtype != np.int8 or zero.any():
        return None
    return (weights, steps) if steps.size == 1 or attribute(node, "axis", 1) == 0 else None


def _largest_pair(sizes: Array) -> Array:
    """Largest sum of a pair in each output channel, of sizes (out, in / groups, height, width) of at least 0."""
    out, channels = sizes.shape[:2]
    if channels % _LANES:
        pair: Array = np.sort(sizes.reshape(out, -1), axis=1)[:, -2:].sum(axis=1)
        return pair
    pairs = sizes.reshape(out, channels // 2, 2, -1).sum(axis=2)
    largest: Array = pairs.reshape(out, -1).max(axis=1)
    return largest


def _rounded(exact: Array) -> Array:
    """Whole numbers whose sum in each row is the exact one's, rounded; none is off by 1 or more, and zeros stay.

    What all of a channel's inputs have in common, their mean, is then multiplied as before: with each number rounded
    for itself the pistols model lost 0.007 mAP@0.5, and so nothing.
    """
    whole = np.rint(exact)
    left = exact - whole
    missing = np.rint(left.sum(axis=1, keepdims=True))
    # In each row those that were rounded off by most, towards what is missing.
    rank = np.argsort(np.argsort(-left * np.sign(missing), axis=1, kind="stable"), axis=1, kind="stable")
    rounded: Array = whole + np.sign(missing) * (rank < np.abs(missing))
    return rounded
