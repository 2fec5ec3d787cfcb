"""The network a training starts with."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.checkpoint import Checkpoint, plain_weights, read_checkpoint
from trainer.errors import CheckpointError, TrainerError
from trainer.from_onnx import read_onnx
from trainer.layers import Activation, Detect
from trainer.model import SIZES, YoloV5
from trainer.settings import TrainSettings, parse_cfg

# Published starting point of the head: some 8 objects in a picture of 640, each class as likely as 0.6 / classes.
_OBJECTS, _SIDE, _CLASS_SHARE = 8, 640, 0.6
_ALMOST_ONE = 0.999999  # keeps the share finite for a single class


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or an ONNX export of ours; raises CheckpointError."""
    try:
        read = read_onnx if path.suffix == ".onnx" else read_checkpoint
        return read(path.read_bytes(), path.name)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def start_network(settings: TrainSettings, classes: int) -> tuple[YoloV5, Activation, str, Checkpoint | None]:
    """(network, activation, size, the checkpoint it began from) of a new training; weights that fit are taken over.

    Raises TrainerError where neither a shape nor weights are given, or the weights are of another size.
    """
    begun = load_checkpoint(settings.weights) if settings.weights else None
    if not settings.cfg and begun is None:
        raise TrainerError("neither --cfg nor --weights given; expected at least one, such as --cfg yolov5n")
    if settings.cfg:
        size, activation = parse_cfg(settings.cfg)
    else:
        assert begun is not None
        size, activation = begun.size, begun.activation
    if begun is not None and begun.size != size:
        raise TrainerError(f"{begun.name}: weights of yolov5{begun.size}, but --cfg says {settings.cfg}")
    torch.manual_seed(settings.seed)
    network = YoloV5(SIZES[size], classes, activation=activation)
    initialise(network, classes)
    if begun is not None:
        take_over(network, begun)
    return network, activation, size, begun


def take_over(network: nn.Module, begun: Checkpoint) -> int:
    """Copy the weights whose names and shapes agree; returns how many tensors."""
    own = network.state_dict()
    weights = plain_weights(begun)
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise CheckpointError(f"{begun.name}: none of its {len(begun.state)} weights fits this network")
    network.load_state_dict(fitting, strict=False)
    return len(fitting)


def initialise(network: YoloV5, classes: int) -> None:
    """Biases of the head such that an untrained network finds little, instead of something everywhere."""
    head = head_of(network)
    for conv, stride in zip(head.m, head.strides, strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        with torch.no_grad():
            biases = conv.bias.view(len(head.anchors[0]), -1)
            biases[:, 4] += math.log(_OBJECTS / (_SIDE / stride) ** 2)
            biases[:, 5:] += math.log(_CLASS_SHARE / (classes - _ALMOST_ONE))


def head_of(network: nn.Module) -> Detect:
    """The detection head of a `YoloV5`."""
    head = network.model[-1]  # type: ignore[index]  # a ModuleList, which nn.Module's stubs cannot know
    assert isinstance(head, Detect)
    return head


def set_anchors(network: nn.Module, anchors: Tensor) -> None:
    """Anchors (3 levels, 3, 2) in pixels."""
    head = head_of(network)
    strides = anchors.new_tensor(head.strides).view(-1, 1, 1)
    head.anchors.copy_(anchors / strides)
