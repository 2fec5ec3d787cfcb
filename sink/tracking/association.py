"""Which detection is which track: boxes that overlap most, taken together."""

from __future__ import annotations

from collections.abc import Sequence

import lap
import numpy as np
from numpy.typing import NDArray

from sink.tracks import BoxPx

Floats = NDArray[np.float64]


def match(
    tracks: Sequence[BoxPx],
    margins_px: Sequence[float],
    boxes: Sequence[BoxPx],
    scores: Sequence[float],
    min_iou: float,
) -> list[tuple[int, int]]:
    """Pairs (track, box) of indices: the assignment of the highest sum of overlap x score, each used once.

    `margins_px` is how far off each track's box may be: before they are compared, both boxes grow by it on each side,
    so that an object whose speed is not known yet is found beside its last place. Pairs that then overlap by less
    than `min_iou` are out.
    """
    if not tracks or not boxes:
        return []
    overlap = iou(np.array(tracks), np.array(boxes), np.array(margins_px))
    gain = np.where(overlap >= min_iou, overlap * np.array(scores), 0.0)
    # A pair costs less than 1, to be left over costs 1 a pair.
    columns = lap.lapjv(1 - gain, extend_cost=True, cost_limit=1.0, return_cost=False)[0].tolist()
    return [(row, column) for row, column in enumerate(columns) if column >= 0 and gain[row, column] > 0]


def iou(tracks: Floats, boxes: Floats, margins: Floats) -> Floats:
    """Intersection over union of (n, 4) with (m, 4) boxes, each grown by its track's margin (n,): (n, m)."""
    margin = margins[:, None, None]
    # Enlarging both boxes of a pair by one margin moves its edges apart alike.
    low = np.maximum(tracks[:, None, :2], boxes[None, :, :2]) - margin
    high = np.minimum(tracks[:, None, 2:], boxes[None, :, 2:]) + margin
    common = np.prod(np.maximum(high - low, 0.0), axis=2)
    sides = 2 * margin
    area = np.prod(tracks[:, None, 2:] - tracks[:, None, :2] + sides, axis=2)
    other = np.prod(boxes[None, :, 2:] - boxes[None, :, :2] + sides, axis=2)
    return np.asarray(common / (area + other - common))
