"""Which detection found which object: intersection over union, and greedy one-to-one pairing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union, (m, n), of boxes (m, 4) and (n, 4) as corners; 0 where both are empty."""
    low: Any = np.maximum(a[:, None, :2], b[None, :, :2])
    high: Any = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    sizes_a, sizes_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    union = sizes_a[:, None] + sizes_b[None] - shared
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def match_by_score(overlap: Floats, threshold: float) -> Ints:
    """The object (or -1) of each detection, (m,), as COCO pairs them; overlap is (m, n), the best score first.

    Each detection in turn takes the free object it overlaps most, where that is at least the threshold.
    """
    found = np.full(len(overlap), -1, np.int64)
    left = np.where(overlap >= threshold, overlap, -1.0)
    # Most detections of a low confidence are near no object: only the others cost a turn.
    for row in np.flatnonzero((left > 0).any(axis=1)):
        # Of equal overlaps the reference program takes the last.
        best = left.shape[1] - 1 - int(left[row, ::-1].argmax())
        if left[row, best] > 0:
            found[row] = best
            left[:, best] = -1.0
    return found


def match_by_overlap(overlap: Floats, threshold: float) -> Ints:
    """The object (or -1) of each detection, (m,): of all pairs at or over the threshold the closest is taken first.

    The pairing for a table of confusion: whose class is right does not depend on which score is higher.
    """
    found = np.full(len(overlap), -1, np.int64)
    taken = np.zeros(overlap.shape[1], bool)
    rows, columns = np.nonzero(overlap >= threshold)
    for pair in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = rows[pair], columns[pair]
        if found[row] < 0 and not taken[column]:
            found[row] = column
            taken[column] = True
    return found
