"""The weights of an ONNX file that `sparsecam export` wrote, as a checkpoint to begin a training with.

What is shipped and deployed is ONNX; its checkpoint is often gone. Integers become floats again (off by half a step of
their 255 at most), pruned weights stay zero. Its normalisations are inside its convolutions: `unfold` makes new ones.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import cast

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships none
from onnx import numpy_helper
from onnx.onnx_ml_pb2 import ModelProto, NodeProto
from torch import Tensor, nn

from trainer.checkpoint import Checkpoint, parse_labels, structure
from trainer.errors import CheckpointError
from trainer.layers import BN_EPS, Conv
from trainer.model import STRIDES

_WHITE = 255  # the network's 1.0, as bytes
_LAYER = re.compile(r"model\.\d+(\.\w+)*")
_EXPECTED = (
    "expected a file that `sparsecam export` wrote, not one that `models prepare` or another program has changed"
)


def read_onnx(data: bytes, name: str) -> Checkpoint:
    """Understand the bytes of an ONNX export of ours, quantised or not; raises CheckpointError."""
    proto = parse_onnx(data, name)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    changed = {node.op_type for node in proto.graph.node} & {"HardSigmoid", "HardSwish"}
    if changed:  # forms that engines want: without Clip its activation would be taken for SiLU
        raise CheckpointError(f"{name}: {', '.join(sorted(changed))} among its nodes; {_EXPECTED}")
    state = _Graph(proto, name).state()
    try:
        anchors = torch.tensor(json.loads(facts["anchors"]), dtype=torch.float32)
        height, width = json.loads(facts["imgsz"])
        state["model.24.anchors"] = anchors / torch.tensor(STRIDES).view(-1, 1, 1)
        labels = ast.literal_eval(facts["names"])  # as YOLOv5 writes them: the text of a dictionary
    except (KeyError, ValueError, TypeError, SyntaxError, RuntimeError) as error:
        raise CheckpointError(f"{name}: its metadata lack anchors, imgsz or names; {_EXPECTED}") from error
    size, classes = structure(state, name)
    return Checkpoint(
        name=name,
        state=state,
        size=size,
        classes=classes,
        activation="hardswish" if any(node.op_type == "Clip" for node in proto.graph.node) else "silu",
        labels=parse_labels(labels, classes, name),
        strides=STRIDES,
        image_size=(int(height), int(width)),
        folded=True,
    )


def parse_onnx(data: bytes, name: str) -> ModelProto:
    """The bytes as a graph, whoever wrote it; raises CheckpointError."""
    try:
        return onnx.load_model_from_string(data)
    # The last two as protobuf in Python alone raises them: names that are no text, parts too deep in parts.
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{name}: no ONNX file: {error}") from error


@torch.no_grad()
def unfold(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give folded normalisations the mean and variance of their inputs on these pictures, without changing what the
    network computes: training is then as stable as from a checkpoint. `batches` are (b, 3, h, w) uint8 RGB."""
    layers = [module for module in network.modules() if isinstance(module, Conv)]
    watches = [_Watch(cast("nn.BatchNorm2d", layer.bn)) for layer in layers]
    was_training = network.training
    network.eval()
    for pictures in batches:
        network(pictures.float() / _WHITE)
    for watch in watches:
        watch.apply()
    network.train(was_training)


class _Watch:
    """Gathers the moments of what one normalisation is given."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self._layer = layer
        self._count = 0
        self._sum = torch.zeros_like(layer.weight, dtype=torch.float64)
        self._squares = torch.zeros_like(self._sum)
        self._hook = layer.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        self._count += values.numel() // values.shape[1]
        self._sum += values.sum((0, 2, 3))
        self._squares += values.square().sum((0, 2, 3))

    def apply(self) -> None:
        self._hook.remove()
        layer = self._layer
        if not self._count:
            return
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean.square()).clamp_min(0)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # y = x * gain + offset before, and (x - mean) / spread * (gain * spread) + (offset + mean * gain) after.
        gain = layer.weight / (layer.running_var + layer.eps).sqrt()
        offset = layer.bias - layer.running_mean * gain
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.weight.copy_(gain * (layer.running_var + layer.eps).sqrt())
        layer.bias.copy_(offset + layer.running_mean * gain)


class _Graph:
    """The graph of an export: its constants, and which node makes and takes what."""

    def __init__(self, proto: ModelProto, name: str) -> None:
        self._name = name
        self._input = proto.graph.input[0].name if proto.graph.input else ""
        self._nodes = list(proto.graph.node)
        self._constants = {one.name: one for one in proto.graph.initializer}
        for node in self._nodes:  # PyTorch writes equal constants once: the biases of a network that is not trained yet
            if node.op_type == "Identity" and node.input[0] in self._constants:
                self._constants[node.output[0]] = self._constants[node.input[0]]
        self._makers = {output: node for node in self._nodes for output in node.output}
        self._takers: dict[str, NodeProto] = {}
        for node in self._nodes:
            for taken in node.input:
                self._takers.setdefault(taken, node)

    def state(self) -> dict[str, Tensor]:
        """Weights by the names of `YoloV5.state_dict`, normalisations as those that only add the bias."""
        state: dict[str, Tensor] = {}
        for node in self._nodes:
            if node.op_type not in ("Conv", "ConvInteger"):
                continue
            if not _LAYER.fullmatch(node.name):
                raise CheckpointError(f"{self._name}: a convolution named {node.name!r}; {_EXPECTED}")
            weights, bias = self._floats(node) if node.op_type == "Conv" else self._integers(node)
            state[f"{node.name}.weight"] = weights
            normalised, _, last = node.name.rpartition(".")
            if last == "conv":
                state |= _adding(f"{normalised}.bn", bias)
            else:
                state[f"{node.name}.bias"] = bias
        return state

    def _floats(self, node: NodeProto) -> tuple[Tensor, Tensor]:
        weights, bias = self._constant(node, 1), self._constant(node, 2)
        maker = self._makers.get(node.input[0])
        first = maker is not None and maker.op_type == "Cast" and maker.input[0] == self._input
        return (weights * _WHITE if first else weights), bias

    def _integers(self, node: NodeProto) -> tuple[Tensor, Tensor]:
        add = self._next(node, "Add")
        steps = self._constant(self._next(self._next(add, "Cast"), "Mul"), 1)  # of the sums: input's times weights'
        maker = self._makers.get(node.input[0])
        scale = torch.tensor(1 / _WHITE)
        if node.input[0] != self._input:
            if maker is None or maker.op_type != "QuantizeLinear":
                raise CheckpointError(f"{self._name}: {node.name} has no quantised input; {_EXPECTED}")
            scale = self._constant(maker, 1)
        weights = self._constant(node, 1) * (steps / scale).view(-1, 1, 1, 1)
        return weights, (self._constant(add, 1) * steps).flatten()

    def _next(self, node: NodeProto, kind: str) -> NodeProto:
        taker = self._takers.get(node.output[0])
        if taker is None or taker.op_type != kind:
            found = taker.op_type if taker else "nothing"
            raise CheckpointError(f"{self._name}: {found} after {node.name}, not {kind}; {_EXPECTED}")
        return taker

    def _constant(self, node: NodeProto, place: int) -> Tensor:
        key = node.input[place] if len(node.input) > place else ""
        if key not in self._constants:
            raise CheckpointError(f"{self._name}: {node.name} has no constant as input {place}; {_EXPECTED}")
        return torch.from_numpy(numpy_helper.to_array(self._constants[key]).copy()).float()


def _adding(prefix: str, bias: Tensor) -> dict[str, Tensor]:
    """A normalisation that passes its input through, plus the bias."""
    return {
        f"{prefix}.weight": torch.ones_like(bias),
        f"{prefix}.bias": bias,
        f"{prefix}.running_mean": torch.zeros_like(bias),
        f"{prefix}.running_var": torch.full_like(bias, 1 - BN_EPS),
    }
