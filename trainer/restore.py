"""The network of a checkpoint or of an ONNX export of ours, and what it is."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.checkpoint import build, read_checkpoint
from trainer.from_onnx import read_onnx
from trainer.layers import Activation
from trainer.model import YoloV5


@dataclass(frozen=True)
class Restored:
    """A network in eval mode, and what its checkpoint says of it."""

    network: YoloV5
    size: str  # a key of SIZES
    activation: Activation
    names: dict[int, str]
    image_size: tuple[int, int]  # (height, width) in pixels


def restore(data: bytes, name: str) -> Restored:
    """Build the network from the bytes of a checkpoint, or in floats from those of an ONNX export (`name` tells which).

    Raises CheckpointError, RecipeError or ExtraMissing.
    """
    checkpoint = read_onnx(data, name) if name.endswith(".onnx") else read_checkpoint(data, name)
    names = checkpoint.labels or {number: f"class{number}" for number in range(checkpoint.classes)}
    return Restored(build(checkpoint), checkpoint.size, checkpoint.activation, names, checkpoint.image_size)
