"""Rounding moves the means of a network's answers; correcting the biases moves them back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.checkpoint import Checkpoint, build
from trainer.model import SIZES, YoloV5

pytest.importorskip("sparseml", reason="the training extra is not installed")

from trainer import oneshot as at_once
from trainer.bias import correct_biases


def _pictures(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(count)]


@torch.no_grad()
def _levels(network: nn.Module, pictures: list[Tensor]) -> Tensor:
    """Means over pictures of what reaches the head, each channel of each level (channels,)."""
    seen: list[Tensor] = []
    hook = network.get_submodule("model.24").register_forward_pre_hook(
        lambda _, inputs: seen.append(torch.cat([level.mean((0, 2, 3)) for level in inputs[0]]))
    )
    for batch in pictures:
        network(batch.float() / 255)
    hook.remove()
    return torch.stack(seen).mean(0)


def test_the_means_of_what_reaches_the_head_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = YoloV5(SIZES["n"], 2, activation="hardswish").train()
    for batch in _pictures(4):
        network(batch.float() / 255)  # statistics that are of these pictures
    checkpoint = Checkpoint("small", network.eval().state_dict(), "n", 2, "hardswish", None, (8, 16, 32), (64, 64))
    monkeypatch.setattr(at_once, "correct_biases", lambda *_: None)
    rounded, _ = at_once.oneshot(checkpoint, _pictures(16))
    corrected = copy.deepcopy(rounded)
    correct_biases(corrected, _pictures(16))
    wanted = _levels(build(checkpoint), _pictures(16))
    before, after = ((_levels(one, _pictures(16)) - wanted).abs().mean() for one in (rounded, corrected))
    assert float(after) < 0.35 * float(before)
    for name, weights in rounded.state_dict().items():
        assert not name.endswith("conv.module.weight") or torch.equal(weights, corrected.state_dict()[name])
