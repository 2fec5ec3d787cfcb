"""Take back the shift that rounding gives answers: bias correction (Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", section 4.2, from pictures instead of statistics).

Rounded weights and inputs move the mean of an output channel, and the layers behind add such shifts up. What the mean
was in floats is known, so the difference goes into the channel's bias: layer by layer, each on what the corrected ones
before it give.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import QuantWrapper

from trainer.quantised import Activations, FoldedConv
from trainer.reconstruct import spread

# Pictures that are looked at, of those given. Every layer runs the network on each; a mean over so many thousand places
# wavers little.
_PICTURES = 32
_WHITE = 255  # the network's 1.0


@torch.no_grad()
def correct_biases(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Change the biases of a quantised network's layers, in place; it must be in eval mode.

    `batches` are pictures (b, 3, h, w) uint8 RGB, of which some dozens are used.
    """
    few = spread(batches, _PICTURES)
    layers = {
        f"{name}.module": module.module for name, module in network.named_modules() if isinstance(module, QuantWrapper)
    }
    floats = _in_floats(network)
    wanted = _means(floats, {name: floats.get_submodule(name) for name in layers}, few)
    for name, layer in layers.items():
        shift = wanted[name] - _means(network, {name: layer}, few)[name]
        # Of a normalisation the last term, outside of its factor.
        bias = (layer.bn if isinstance(layer, FoldedConv) else layer).bias
        if bias is not None:
            cast("Tensor", bias).add_(shift)


def _in_floats(network: nn.Module) -> nn.Module:
    """The same network without its rounding."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, Activations) or name == "weight_fake_quant":
                setattr(module, name, nn.Identity())
    return twin


class _Enough(Exception):
    """All layers have answered; what comes behind them does not matter."""


def _means(network: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean of each channel (channels,) of the layers' answers."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [layer.register_forward_hook(_noter(seen, name)) for name, layer in layers.items()]
    try:
        for pictures in batches:
            with contextlib.suppress(_Enough):
                network(pictures.float() / _WHITE)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(means).mean(0) for name, means in seen.items()}


def _noter(seen: Mapping[str, list[Tensor]], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def note(_: nn.Module, __: object, output: Tensor) -> None:
        seen[name].append(output.float().mean((0, 2, 3)))
        if len({len(means) for means in seen.values()}) == 1:
            raise _Enough

    return note
