"""Non-maximum suppression equals its plain definition, however many boxes there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.nms import MAX_CANDIDATES, nms

Array = np.ndarray[Any, Any]


def by_definition(boxes: Array, scores: Array, classes: Array, iou_thres: float, limit: int) -> list[int]:
    """Greedy suppression, one pair at a time."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        for j in kept:
            width = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
            height = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
            both = max(width, 0) * max(height, 0)
            areas = [(boxes[k][2] - boxes[k][0]) * (boxes[k][3] - boxes[k][1]) for k in (i, j)]
            if classes[i] == classes[j] and both / (sum(areas) - both) > iou_thres:
                break
        else:
            kept.append(i)
    return kept[:limit]


def random_boxes(seed: int, count: int, classes: int, spread: int) -> tuple[Array, Array, Array]:
    """Whole-numbered boxes around a few places, so that many overlap, some partly outside the picture."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(-30, spread, (count, 2))
    boxes = np.hstack([corner, corner + rng.integers(1, 60, (count, 2))]).astype(np.float32)
    # A few equal scores, to hold the order of ties as well.
    scores = (rng.integers(1, 1000, count) / 1000).astype(np.float32)
    return boxes, scores, rng.integers(0, classes, count)


# A threshold no IoU of whole-numbered boxes below 2^12 px area sums can equal, so rounding decides nothing.
thresholds = st.sampled_from([0.0, 0.3000001, 0.4500001, 0.6000001, 0.9000001])


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 3), st.integers(1, 200), thresholds)
def test_few_boxes_equal_the_definition(seed: int, count: int, classes: int, spread: int, iou_thres: float) -> None:
    boxes, scores, kinds = random_boxes(seed, count, classes, spread)
    expected = by_definition(boxes.tolist(), scores.tolist(), kinds.tolist(), iou_thres, 300)
    assert nms(boxes, scores, kinds, iou_thres, 300).tolist() == expected


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([256, 257, 384, 500, 700]), st.integers(1, 3), thresholds)
def test_many_boxes_equal_the_definition(seed: int, count: int, classes: int, iou_thres: float) -> None:
    boxes, scores, kinds = random_boxes(seed, count, classes, 400)
    for limit in (20, 10_000):
        expected = by_definition(boxes.tolist(), scores.tolist(), kinds.tolist(), iou_thres, limit)
        assert nms(boxes, scores, kinds, iou_thres, limit).tolist() == expected


@pytest.mark.parametrize("wrong", [[150, 300, 100, 380], [150, 300, 200, 220], [150, 300, 100, 220], [9, 9, 9, 9]])
@pytest.mark.parametrize("count", [2, 300])  # OpenCV's way, and NumPy's
def test_a_box_that_is_inside_out_or_empty_suppresses_none(wrong: list[float], count: int) -> None:
    sound = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(count)], np.float32)
    boxes = np.concatenate([np.array([wrong], np.float32), sound])
    scores = np.linspace(0.9, 0.1, count + 1).astype(np.float32)
    for classes in (np.zeros(count + 1, np.int64), np.arange(count + 1)):
        assert nms(boxes, scores, classes, 0.45, 1000).tolist() == list(range(1, count + 1))
        assert nms(boxes, scores, classes, 0.45, 1).tolist() == [1]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_the_limit_holds(count: int) -> None:
    boxes = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(count)], np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.1, count).astype(np.float32)
    assert nms(boxes, scores, np.zeros(count, np.int64), 0.5, 1).tolist() == [0][:count]
    assert len(nms(boxes, scores, np.zeros(count, np.int64), 0.5, 1000)) == count


def test_a_flood_of_candidates_is_bounded_and_the_best_survive() -> None:
    count = MAX_CANDIDATES + 5000
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (count, 1))
    boxes[-1] += 100
    scores = np.full(count, 0.5, np.float32)
    scores[-1] = 0.9
    assert nms(boxes, scores, np.zeros(count, np.int64), 0.5, 300).tolist() == [count - 1, 0]
