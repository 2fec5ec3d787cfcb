"""Arithmetic on boxes as tensors, (..., 4) each, differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = 1e-7  # keeps divisions finite, far below a pixel


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of boxes (n, 4) as cx, cy, w, h, pair by pair: (n,), 1 where equal, down to below -1 far apart.

    IoU - distance of centres^2 / diagonal of the enclosing box^2 - alpha * v, by Zheng et al., "Enhancing geometric
    factors in model learning and inference for object detection" (2020), formulas 9 to 12.
    """
    a_x, a_y, a_w, a_h = a.unbind(-1)
    b_x, b_y, b_w, b_h = b.unbind(-1)
    wide = _overlap(a_x, a_w, b_x, b_w).clamp(min=0)
    high = _overlap(a_y, a_h, b_y, b_h).clamp(min=0)
    intersection = wide * high
    iou = intersection / (a_w * a_h + b_w * b_h - intersection + _EPS)
    around_w = torch.maximum(a_x + a_w / 2, b_x + b_w / 2) - torch.minimum(a_x - a_w / 2, b_x - b_w / 2)
    around_h = torch.maximum(a_y + a_h / 2, b_y + b_h / 2) - torch.minimum(a_y - a_h / 2, b_y - b_h / 2)
    diagonal = around_w**2 + around_h**2 + _EPS
    distance = (a_x - b_x) ** 2 + (a_y - b_y) ** 2
    v = 4 / math.pi**2 * (torch.atan(b_w / (b_h + _EPS)) - torch.atan(a_w / (a_h + _EPS))) ** 2
    with torch.no_grad():  # a weight, not something to learn by
        alpha = v / (1 - iou + v + _EPS)
    return iou - distance / diagonal - alpha * v


def _overlap(a: Tensor, a_length: Tensor, b: Tensor, b_length: Tensor) -> Tensor:
    return torch.minimum(a + a_length / 2, b + b_length / 2) - torch.maximum(a - a_length / 2, b - b_length / 2)
