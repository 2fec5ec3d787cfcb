"""The network of a checkpoint with the layers it had when it was saved: quantised ones have other layers and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainer.checkpoint import build, read_checkpoint
from trainer.errors import CheckpointError
from trainer.layers import Activation
from trainer.model import SIZES, YoloV5
from trainer.unpickle import unpickle

_WRAPPED = ".conv.module."  # in the names of a quantised convolution's weights


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
    saved = unpickle(data, name)
    state = (saved.get("ema") or saved.get("model")) if isinstance(saved, dict) else None
    if isinstance(state, dict) and any(_WRAPPED in str(key) for key in state):
        return _quantised(saved, state, name)
    checkpoint = read_checkpoint(data, name)
    names = checkpoint.labels or {number: f"class{number}" for number in range(checkpoint.classes)}
    return Restored(build(checkpoint), checkpoint.size, checkpoint.activation, names, checkpoint.image_size)


def _quantised(saved: dict[str, Any], state: dict[str, Tensor], name: str) -> Restored:
    from trainer.sparsify import apply_structure

    try:
        size, activation, names = saved["size"], saved["activation"], dict(saved["names"])
        height, width = saved["image_size"]
        recipe, epoch = saved["recipe"], saved["progress"]["epoch"]
        network = YoloV5(SIZES[size], len(names), activation=activation)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: quantised, but it does not say {error}; expected a checkpoint of `sparsecam train` with its "
            "size, activation, names, image_size, recipe and progress"
        ) from error
    apply_structure(network, recipe, epoch)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{name}: its weights are not those its recipe makes: {str(error)[:500]}") from error
    return Restored(network.eval(), size, activation, names, (height, width))
