"""Which detection is which track: boxes that are most alike, taken together."""

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
    """Pairs (track, box) of indices: the assignment of the highest sum of likeness x score, each used once.

    `margins_px` is how far off each track's box may be: before they are compared, both boxes grow by it on each side,
    so that an object whose speed is not known yet is found beside its last place. Pairs that then overlap by less
    than `min_iou` are out.
    """
    if not tracks or not boxes:
        return []
    overlap, height = overlaps(np.array(tracks), np.array(boxes), np.array(margins_px))
    # Two who pass each other differ in height and in where they stand when their widths, which swing with their steps,
    # say nothing: the overlap in height weighs more (as in HMIoU of Hybrid-SORT, Yang et al., AAAI 2024).
    gain = overlap * height * height * scores
    gain[overlap < min_iou] = 0.0
    rows, columns = (side.tolist() for side in gain.nonzero())
    if len(set(rows)) == len(rows) == len(set(columns)):  # nobody is wanted twice, as in most frames
        return list(zip(rows, columns, strict=True))
    # A pair costs less than 1, to be left over costs 1 a pair.
    chosen = lap.lapjv(1 - gain, extend_cost=True, cost_limit=1.0, return_cost=False)[0].tolist()
    return [(row, column) for row, column in enumerate(chosen) if column >= 0 and gain[row, column] > 0]


def overlaps(tracks: Floats, boxes: Floats, margins: Floats) -> tuple[Floats, Floats]:
    """Intersection over union of (n, 4) with (m, 4) boxes, each grown by its track's margin (n,): (n, m).

    Of the boxes, and of their heights alone (below 0 where they lie one above the other).
    """
    one, other = tracks.T[:, :, None], boxes.T[:, None, :]
    grown = 2 * margins[:, None]
    # Enlarging both boxes of a pair by one margin moves its edges apart alike.
    common = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + grown
    sides, other_sides = one[2:] - one[:2] + grown, other[2:] - other[:2] + grown
    height = common[1] / (sides[1] + other_sides[1] - common[1])
    np.maximum(common, 0.0, out=common)
    area = common[0] * common[1]
    return area / (sides[0] * sides[1] + other_sides[0] * other_sides[1] - area), height
