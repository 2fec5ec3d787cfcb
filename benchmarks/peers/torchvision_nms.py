"""Stands in for torchvision where no build of it goes with the installed torch: `torchvision.ops.nms`, nothing else.

Copied into a peer's environment as the module `torchvision` by `venvs.py`. The two peers that import torchvision use
this one function of it. For the handful of boxes that pass a threshold of 0.25 it takes tens of microseconds a frame.
"""

from __future__ import annotations

import sys

import numpy as np
import torch


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices (int64) of the boxes kept, best first; boxes (n, 4) as corners, scores (n,)."""
    corners, order = boxes.numpy(), np.argsort(-scores.numpy(), kind="stable")
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(corners[best, :2], corners[order, :2])
        high = np.minimum(corners[best, 2:], corners[order, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        order = order[shared <= iou_threshold * (areas[best] + areas[order] - shared)]
    return torch.from_numpy(np.array(kept, dtype=np.int64))


# `torchvision.ops.nms` and `import torchvision.ops` both lead here.
ops = sys.modules[f"{__name__}.ops"] = sys.modules[__name__]
