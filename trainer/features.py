"""What a teacher sees, beside what it answers: a student of the same shape learns each block's maps from its twin.

The truth, and a teacher's answers, reach a network's first layers through all those behind them; a map says to each
block what it should make of a picture. The measure is SquareHead's: the mean squared difference over the teacher's mean
square, so that every block counts alike (Kurtic et al. 2023, "Sparse Fine-tuning for Inference Acceleration of Large
Language Models").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from trainer.layers import C3, SPPF
from trainer.model import YoloV5

_LEAST_SQUARE = 1e-6  # mean square of a teacher's map; those of the pistols network are 0.1 to 2


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks whose maps are compared, by name: those of several convolutions; the rest feed one of them."""
    assert isinstance(network, YoloV5)
    return {f"model.{number}": layer for number, layer in enumerate(network.model) if isinstance(layer, C3 | SPPF)}


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The maps (b, c, h, w) of the blocks, filled in while the network runs inside the `with`."""
    seen: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            seen[name] = output

        return layer.register_forward_hook(keep)

    # Not for good: a copy of the network, such as its average, would note its maps here as well.
    hooks = [note(name, layer) for name, layer in blocks(network).items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def apart(maps: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Mean over the blocks of how far the maps are from the wanted ones: 0 where they are the same, 1 for zeros."""
    shares = []
    for name, one in wanted.items():
        target = _by_pixel(one)
        square = target.square().mean()
        # A map that is zero throughout has nothing to be a share of.
        difference = mse_loss(_by_pixel(maps[name]), target)
        shares.append(torch.where(square > _LEAST_SQUARE, difference / square.clamp_min(_LEAST_SQUARE), 0))
    return torch.stack(shares).mean()


def _by_pixel(channels_last: Tensor) -> Tensor:
    """(b, h, w, c), so that the gradient is laid out as the map: a mean's would be channels first, on which the
    backward pass of PyTorch's normalisation takes four times as long on a CPU."""
    return channels_last.permute(0, 2, 3, 1).float()
