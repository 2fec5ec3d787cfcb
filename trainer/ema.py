"""The running average of a network's weights, which is what is validated and saved."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

_DECAY = 0.9999  # as published for YOLOv5
_RAMP_STEPS = 2000  # early weights are poor: the average starts short and grows this slowly


class Ema:
    """decay = 0.9999 * (1 - exp(-steps / 2000)) of the average, the rest of the network, after each step."""

    def __init__(self, network: nn.Module, steps: int = 0) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.steps = steps

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Call after each step of the optimizer."""
        self.steps += 1
        decay = _DECAY * (1 - math.exp(-self.steps / _RAMP_STEPS))
        now = network.state_dict()
        for key, average in self.network.state_dict().items():
            if average.is_floating_point():
                average.lerp_(now[key].detach().to(average.dtype), 1 - decay)
            else:
                average.copy_(now[key])
