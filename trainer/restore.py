"""The network of a checkpoint, and what it is."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.checkpoint import build, read_checkpoint
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
    """Build the network from the bytes of a checkpoint; raises CheckpointError, RecipeError or ExtraMissing."""
    checkpoint = read_checkpoint(data, name)
    names = checkpoint.labels or {number: f"class{number}" for number in range(checkpoint.classes)}
    return Restored(build(checkpoint), checkpoint.size, checkpoint.activation, names, checkpoint.image_size)
