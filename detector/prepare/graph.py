"""An ONNX graph with the look-ups that rewriting needs: who makes a tensor, who reads it, what is constant.

`onnx` reads and writes graphs but has no such index. The larger tools for it want a newer `onnx` than DeepSparse allows
(onnx-ir, onnxscript), so this is the little that the rewrites here use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, load_model_from_string, numpy_helper
from onnx.onnx_ml_pb2 import ModelProto, NodeProto, ValueInfoProto

Array = NDArray[Any]

BY_CHANNEL = 13  # opset from which DequantizeLinear takes a step and a zero point for each channel


class Graph:
    """A model that is being rewritten. Nodes are added and dropped through it, so that the look-ups stay true."""

    def __init__(self, onnx: bytes) -> None:
        self.proto: ModelProto = load_model_from_string(onnx)
        self._weights = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self._arrays: dict[str, Array] = {}
        self._fresh = 0
        self.index()

    def index(self) -> None:
        """Look everything up again after nodes were changed in place."""
        self._producer: dict[str, NodeProto] = {}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.output:
                self._producer[name] = node
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    @property
    def nodes(self) -> list[NodeProto]:
        """All nodes in the file's order, producers before readers."""
        return list(self.proto.graph.node)

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.proto.graph.output]

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return next((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), 1)

    def picture(self) -> ValueInfoProto:
        """The one input that is no weight; `detector.model` has made sure that there is one."""
        found: ValueInfoProto = next(value for value in self.proto.graph.input if value.name not in self._weights)
        return found

    def producer(self, tensor: str, *kinds: str) -> NodeProto | None:
        """The node that makes a tensor, if there is one and it is of these kinds (any, when none is given)."""
        node = self._producer.get(tensor)
        return node if node is not None and (not kinds or node.op_type in kinds) else None

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def only_reader(self, tensor: str) -> NodeProto | None:
        """The node that reads a tensor, if no other does and the tensor is no output of the graph."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def constant(self, tensor: str) -> Array | None:
        """The value of a weight or of a Constant node, also through Identity; None where it is computed."""
        # PyTorch writes equal constants once and gives them several names.
        while (alias := self.producer(tensor, "Identity")) is not None:
            tensor = alias.input[0]
        if tensor in self._arrays:
            return self._arrays[tensor]
        if tensor in self._weights:
            value: Array = numpy_helper.to_array(self._weights[tensor])
        else:
            node = self.producer(tensor, "Constant")
            found = attribute(node, "value", None) if node is not None else None
            if found is None:
                return None
            value = numpy_helper.to_array(found)
        self._arrays[tensor] = value
        return value

    def scalar(self, tensor: str) -> float | None:
        """The value of a constant with one element."""
        value = self.constant(tensor)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def add_constant(self, value: Array, hint: str) -> str:
        """A new weight; returns its name."""
        name = self.fresh(hint)
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self.proto.graph.initializer.append(tensor)
        self._weights[name] = tensor
        return name

    def fresh(self, hint: str) -> str:
        """A tensor name that is not taken."""
        while True:
            self._fresh += 1
            name = f"{hint}_p{self._fresh}"
            if name not in self._weights and name not in self._producer:
                return name

    def replace(self, old: NodeProto, new: Sequence[NodeProto]) -> None:
        """Put nodes in the place of one; they must make its outputs."""
        self.replace_all({old.output[0]: new})

    def replace_all(self, new: Mapping[str, Sequence[NodeProto]]) -> None:
        """As `replace` for many nodes at once, each named by its first output; one by one takes seconds."""
        self._set_nodes(node for old in self.nodes for node in new.get(old.output[0], [old]))

    def insert(self, before: NodeProto, new: Sequence[NodeProto]) -> None:
        """Add nodes in front of another."""
        self.replace(before, [*new, clone(before)])

    def reroute(self, old: str, new: str) -> None:
        """Let every reader of one tensor read another; outputs of the graph keep their names."""
        for node in self.readers(old):
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
        self.index()

    def clean(self) -> None:
        """Drop nodes that lead to no output, then weights that nobody reads."""
        wanted = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if any(name in wanted for name in node.output):
                kept.append(node)
                wanted.update(node.input)
                wanted.update(_outer_names(node))
        self._set_nodes(kept[::-1])
        weights = [clone(tensor) for tensor in self.proto.graph.initializer if tensor.name in wanted]
        inputs = [clone(value) for value in self.proto.graph.input]
        picture = self.picture().name
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(weights)
        del self.proto.graph.input[:]  # old exporters list weights as inputs too
        self.proto.graph.input.extend(value for value in inputs if value.name == picture)
        del self.proto.graph.value_info[:]
        self._weights = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self._arrays.clear()

    def to_bytes(self) -> bytes:
        """The model as ONNX bytes."""
        return bytes(self.proto.SerializeToString())

    def _set_nodes(self, nodes: Iterable[NodeProto]) -> None:
        kept = [clone(node) for node in nodes]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(kept)
        self.index()


def clone(message: Any) -> Any:
    """A copy of a protobuf message: those taken from a list die with it."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value; `default` where the node has none of that name."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def make(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """A node with one output, named after it."""
    return helper.make_node(op, list(inputs), [output], name=f"{output}_{op}", **attributes)


def _outer_names(node: NodeProto) -> set[str]:
    """Tensors of this graph that a node's own subgraphs (If, Loop) read."""
    names: set[str] = set()
    for entry in node.attribute:
        for graph in [entry.g, *entry.graphs]:
            for inner in graph.node:
                names.update(inner.input)
                names.update(_outer_names(inner))
    return names
