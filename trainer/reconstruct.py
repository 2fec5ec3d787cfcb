"""Regain what pruning at once has cost: the weights that are left are chosen anew, layer by layer, so that each layer
answers as it did before pruning.

A layer's output is linear in its weights, so the best ones that keep the zeros are a least-squares solution for each
output channel (layer-wise reconstruction: Hubara et al. 2021, "Accelerated Sparse Neural Training"; Frantar and
Alistarh 2022, "Optimal Brain Compression"). The inputs are those that the already reconstructed layers before give, so
later layers mend what earlier ones could not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Places of a layer's output that are looked at for each weight of a channel: a solution needs one, noise wants more.
_PLACES_A_WEIGHT = 8
_LEAST_PLACES = 4096
# Pictures that are looked at, of those given: every layer runs both networks on each, and one has hundreds of places.
_PICTURES = 64
# Of the mean of the diagonal, added to it: inputs that hardly vary would else get any weight whatever.
_DAMPING = 0.01
_WHITE = 255  # the network's 1.0


@torch.no_grad()
def reconstruct(pruned: nn.Module, dense: nn.Module, batches: Sequence[Tensor]) -> None:
    """Change the weights of `pruned` that are not zero, in place. Both networks have the same layers, in eval mode;
    `batches` are pictures (b, 3, h, w) uint8 RGB, of which some dozens are used."""
    random = torch.Generator().manual_seed(0)
    few = spread(batches, _PICTURES)
    for name, layer in list(pruned.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and bool((layer.weight == 0).any()):
            twin = dense.get_submodule(name)
            assert isinstance(twin, nn.Conv2d)
            inner, outer = _moments(_Layer(pruned, layer), _Layer(dense, twin), few, random)
            _solve(layer, inner, outer)


def spread(batches: Sequence[Tensor], most: int) -> list[Tensor]:
    """At most so many pictures from all along: neighbours in a data set are often of one scene."""
    batches = batches[:: math.ceil(len(batches) / most)]
    return [batch[: max(1, most // len(batches))] for batch in batches]


@dataclass(frozen=True)
class _Layer:
    """A convolution and the network that it is a part of."""

    network: nn.Module
    conv: nn.Conv2d

    def seen(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer is given, and what it answers, for these pictures."""
        seen: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.extend((inputs[0], output))
            raise _Enough

        hook = self.conv.register_forward_hook(note)
        try:
            self.network(pictures.float() / _WHITE)
        except _Enough:
            pass
        finally:
            hook.remove()
        return seen[0], seen[1]


class _Enough(Exception):
    """The layer has been reached; what comes after it is not wanted."""


def _moments(
    pruned: _Layer, dense: _Layer, batches: Sequence[Tensor], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(k, k) products of the layer's inputs with each other, and (k, out) with the wanted outputs; k = in * kh * kw."""
    layer = pruned.conv
    k = layer.weight[0].numel()
    pictures = sum(len(batch) for batch in batches)
    each = math.ceil(max(_LEAST_PLACES, _PLACES_A_WEIGHT * k) / pictures)
    inner = torch.zeros(k, k, dtype=torch.float64)
    outer = torch.zeros(k, layer.out_channels, dtype=torch.float64)
    for batch in batches:
        for x, y in _places(layer, pruned.seen(batch)[0], dense.seen(batch)[1], each, random):
            inner += (x.T @ x).double()
            outer += (x.T @ y).double()
    return inner, outer


def _places(
    layer: nn.Conv2d, inputs: Tensor, wanted: Tensor, each: int, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each picture (n, k) patches that the layer sees, and (n, out) what it should answer there."""
    assert isinstance(layer.padding, tuple)
    count = wanted.shape[2] * wanted.shape[3]
    for x, y in zip(inputs, wanted, strict=True):
        chosen = torch.randperm(count, generator=random)[:each]
        patches = functional.unfold(x[None], layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0]
        bias = 0 if layer.bias is None else layer.bias
        yield patches[:, chosen].T, y.flatten(1)[:, chosen].T - bias


def _solve(layer: nn.Conv2d, inner: Tensor, outer: Tensor) -> None:
    inner = inner + torch.eye(len(inner), dtype=inner.dtype) * (_DAMPING * inner.diagonal().mean())
    weights = layer.weight.flatten(1)
    for channel, row in enumerate(weights):
        kept = row.nonzero().flatten()
        if len(kept):
            found = torch.linalg.solve(inner[kept][:, kept], outer[kept, channel])
            row[kept] = found.to(row.dtype)
