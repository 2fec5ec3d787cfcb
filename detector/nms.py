"""Class-aware greedy non-maximum suppression.

The standard semantics: candidates by falling score; one is kept unless it overlaps an already kept one of its own class
with IoU > threshold.
"""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

# More candidates than this cannot matter beside `max_detections`, and would make a flood of noise cost seconds.
MAX_CANDIDATES = 30_000
# Up to here one call of OpenCV is quickest: 38 candidates took 25 us against 60 in NumPy, and 46 against 200 right
# after an inference, when the caches hold the model. Past it NumPy wins, as it stops when it has enough (3000: 2 ms
# against 37).
FEW = 256
# Pixels; inputs have 8192 at most, and a double tells a millionth of a pixel in thousands of these.
_APART = 1e6
# Above it candidates are settled in blocks: within a block all pairs at once, before it only against those kept so far,
# so the work grows with candidates * kept. 128 keeps the matrix of pairs (64 KB) in the core's own caches.
_BLOCK = 128

Floats = NDArray[np.float32]


def nms(
    boxes: Floats, scores: Floats, classes: NDArray[Any], iou_thres: float, max_detections: int
) -> NDArray[np.intp]:
    """Indices of the boxes to keep, best first.

    boxes (n, 4) as left, top, right, bottom; scores (n,), above 0; classes (n,). Equal scores keep their order. Of
    several boxes those that are empty or inside out (heads that do not bound their distances give some) are left out:
    their areas of 0 and less would make them the equals of any box.
    """
    count = len(scores)
    if count <= 1:
        return np.arange(min(count, max_detections))
    right = boxes[:, 2:] > boxes[:, :2]
    if not right.all():
        places = np.flatnonzero(right.all(axis=1))
        return places[nms(boxes[places], scores[places], classes[places], iou_thres, max_detections)]
    if count <= FEW:
        return _few(boxes, scores, classes, iou_thres)[:max_detections]
    return _many(boxes, scores, classes, iou_thres, max_detections)


def _few(boxes: Floats, scores: Floats, classes: NDArray[Any], iou_thres: float) -> NDArray[np.intp]:
    """One call of OpenCV, in double precision."""
    sides = boxes.astype(np.float64)
    sides[:, 2:] -= sides[:, :2]
    # Classes move apart further than any two boxes are, so that none overlaps a box of another.
    sides[:, 0] += classes * _APART
    # Candidates are above the confidence threshold already, so above nothing.
    # Its stubs only know sequences; it takes arrays, and quicker.
    kept = cv2.dnn.NMSBoxes(cast("Any", sides), cast("Any", scores), 0.0, iou_thres)
    return np.asarray(kept, dtype=np.intp)


def _many(
    boxes: Floats, scores: Floats, classes: NDArray[Any], iou_thres: float, max_detections: int
) -> NDArray[np.intp]:
    """Blocks in NumPy."""
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    edges = np.ascontiguousarray(boxes[order].T)
    ranked = classes[order]
    kept: NDArray[np.intp] = order[:0]  # ranks
    for start in range(0, len(order), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(order)))
        if len(kept):
            covered = _overlaps(edges[:, kept], ranked[kept], edges[:, block], ranked[block], iou_thres).any(axis=0)
            block = block[~covered]
        block = block[_greedy(_overlaps(edges[:, block], ranked[block], edges[:, block], ranked[block], iou_thres))]
        kept = np.concatenate([kept, block])
        if len(kept) >= max_detections:
            break
    best: NDArray[np.intp] = order[kept[:max_detections]]
    return best


def _greedy(overlaps: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Positions kept of boxes in order of score, from who overlaps whom, (n, n)."""
    alive = np.ones(len(overlaps), dtype=bool)
    # Only a box that overlaps a later one can suppress anything; the others need no turn.
    for index in np.flatnonzero(np.triu(overlaps, 1).any(axis=1)):
        if alive[index]:
            alive[index + 1 :] &= ~overlaps[index, index + 1 :]
    return np.flatnonzero(alive)


def _overlaps(
    a: Floats, a_classes: NDArray[Any], b: Floats, b_classes: NDArray[Any], iou_thres: float
) -> NDArray[np.bool_]:
    """(m, n) booleans, same class and IoU above the threshold, for edges (4, m) and (4, n)."""
    left, top, right, bottom = a[:, :, None]
    other_left, other_top, other_right, other_bottom = b
    intersection = np.minimum(right, other_right)
    intersection -= np.maximum(left, other_left)
    # Clamping one side is enough: apart in height, the product is not positive and below any union.
    np.maximum(intersection, 0, out=intersection)
    height = np.minimum(bottom, other_bottom)
    height -= np.maximum(top, other_top)
    intersection *= height
    union = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    union -= intersection
    union *= np.float32(iou_thres)
    over: NDArray[np.bool_] = intersection > union
    over &= a_classes[:, None] == b_classes
    return over
