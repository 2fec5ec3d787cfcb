"""The optimizer with YOLOv5's groups of parameters, and how its rates go over the epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainer.hyp import Hyp

OptimizerName = Literal["SGD", "Adam", "AdamW"]
_WARMUP_STEPS = 100  # at least, as published: tiny sets would have a handful
# Betas of Adam's second moment are PyTorch's default.
_BETA2 = 0.999


def make_optimizer(network: nn.Module, name: OptimizerName, hyp: Hyp, batch_size: int) -> Optimizer:
    """Groups in this order: biases, weights with decay, weights of normalisations without it."""
    biases: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if key == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.BatchNorm2d):
                plain.append(parameter)
            else:
                decayed.append(parameter)
    decay = hyp.weight_decay * batch_size * accumulate(hyp, batch_size) / hyp.nominal_batch
    groups = [
        {"params": biases, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if name == "SGD":
        return SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=True)
    kind = Adam if name == "Adam" else AdamW
    return kind(groups, lr=hyp.lr0, betas=(hyp.momentum, _BETA2))


def accumulate(hyp: Hyp, batch_size: int) -> int:
    """Batches whose gradients make one step."""
    return max(round(hyp.nominal_batch / batch_size), 1)


@dataclass(frozen=True)
class Schedule:
    """Rates as a function of how far training is, so that a resumed run needs nothing but the epoch."""

    hyp: Hyp
    epochs: int
    batches: int  # an epoch
    batch_size: int
    cosine: bool

    def factor(self, epoch: float) -> float:
        """Of lr0, from 1 down to lrf at the last epoch: a straight line, or half a cosine."""
        share = min(epoch / self.epochs, 1.0)
        if self.cosine:
            share = (1 - math.cos(math.pi * share)) / 2
        return 1 + share * (self.hyp.lrf - 1)

    def set_rates(self, optimizer: Optimizer, epoch: int, batch: int) -> int:
        """Set learning rates and momentum for a batch (counted from 0); returns the batches that make one step now."""
        hyp, target = self.hyp, self.hyp.lr0 * self.factor(epoch)
        warmup = max(round(hyp.warmup_epochs * self.batches), _WARMUP_STEPS) if hyp.warmup_epochs else 0
        # A training shorter than its warm-up would never reach its rates.
        warmup = min(warmup, self.epochs * self.batches // 2)
        step = epoch * self.batches + batch
        full = accumulate(hyp, self.batch_size)
        if step >= warmup:
            _set(optimizer, [target] * len(optimizer.param_groups), hyp.momentum)
            return full
        share = step / warmup
        # Biases come down from a high rate, everything else up from none.
        starts = [hyp.warmup_bias_lr] + [0.0] * (len(optimizer.param_groups) - 1)
        rates = [start + share * (target - start) for start in starts]
        _set(optimizer, rates, hyp.warmup_momentum + share * (hyp.momentum - hyp.warmup_momentum))
        return max(round(1 + share * (full - 1)), 1)


def _set(optimizer: Optimizer, rates: list[float], momentum: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "momentum" in group:
            group["momentum"] = momentum
