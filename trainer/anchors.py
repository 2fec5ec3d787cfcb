"""Whether the anchors suit a data set, and better ones where they do not (YOLOv5's "autoanchor")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

Sizes = NDArray[np.float64]  # (n, 2) width and height in pixels of the training picture

ENOUGH = 0.98  # of the boxes within reach of an anchor: published limit under which anchors are made anew
_SMALLEST = 2.0  # pixels: smaller boxes cannot be learnt, and would pull an anchor to nothing
_GENERATIONS = 1000  # published; each costs a millisecond
_MUTATED, _SPREAD = 0.9, 0.1  # published: share of the sides that change in a generation, and by how much


def recall(sizes: Sizes, anchors: Sizes, anchor_t: float) -> float:
    """Share of the boxes that some anchor answers for, see `loss.assign`."""
    return float((_nearness(sizes, anchors) > 1 / anchor_t).mean()) if len(sizes) else 1.0


def make_anchors(sizes: Sizes, count: int, anchor_t: float, seed: int) -> Sizes:
    """`count` anchors by k-means, then bettered by random mutation; small ones first.

    Returns as many as asked for; sizes must hold at least that many different boxes, else ValueError.
    """
    sizes = sizes[(sizes >= _SMALLEST).all(axis=1)]
    if len(np.unique(sizes, axis=0)) < count:
        raise ValueError(f"{len(sizes)} boxes are too few for {count} anchors")
    rng = np.random.default_rng(seed)
    spread = sizes.std(axis=0).clip(1e-3)
    centres, _ = kmeans2(sizes / spread, count, iter=30, minit="++", seed=rng)
    anchors = np.sort(centres * spread, axis=0).clip(_SMALLEST)
    best = _fitness(sizes, anchors, anchor_t)
    for _ in range(_GENERATIONS):
        change = np.where(rng.random(anchors.shape) < _MUTATED, 1 + rng.normal(0, _SPREAD, anchors.shape), 1)
        child = (anchors * change.clip(0.3, 3.0)).clip(_SMALLEST)
        fitness = _fitness(sizes, child, anchor_t)
        if fitness > best:
            best, anchors = fitness, child
    ordered: Sizes = anchors[np.argsort(anchors.prod(axis=1))]
    return ordered


def _nearness(sizes: Sizes, anchors: Sizes) -> NDArray[np.float64]:
    """(n,) of the best anchor: the worse of its two side ratios, 1 where equal."""
    ratio = sizes[:, None] / anchors[None]
    best: NDArray[np.float64] = np.minimum(ratio, 1 / ratio).min(axis=2).max(axis=1)
    return best


def _fitness(sizes: Sizes, anchors: Sizes, anchor_t: float) -> float:
    near = _nearness(sizes, anchors)
    return float((near * (near > 1 / anchor_t)).mean())
