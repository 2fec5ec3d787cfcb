"""Average precision by COCO's definition: greedy matching, 101 recall points, IoU 0.50 to 0.95.

Source of the formulas: the COCO detection evaluation as published (cocodataset.org, "Detection evaluation") and as its
reference program pycocotools computes it; tests/benchmarks holds a case with that program's answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Truth:
    """Objects of one picture: boxes (n, 4) as corners in pixels, class numbers (n,)."""

    boxes: Floats
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Detections in one picture: boxes (n, 4) as corners in pixels, class numbers (n,), scores (n,)."""

    boxes: Floats
    classes: NDArray[np.int64]
    scores: Floats


def average_precision(truths: Sequence[Truth], found: Sequence[Found]) -> dict[int, Floats]:
    """AP at each of IOU_THRESHOLDS, (10,), of each class that has an object; one entry a picture in both lists."""
    if len(truths) != len(found):
        raise ValueError(f"{len(truths)} pictures of truth, but {len(found)} of detections")
    present = np.unique(np.concatenate([truth.classes for truth in truths])) if truths else np.empty(0, np.int64)
    return {int(number): _class_ap(truths, found, int(number)) for number in present}


def mean_average_precision(by_class: dict[int, Floats]) -> tuple[float, float]:
    """mAP at IoU 0.5, and over 0.50 to 0.95; nan where no class has an object."""
    if not by_class:
        return float("nan"), float("nan")
    mean = np.mean(list(by_class.values()), axis=0)
    return float(mean[0]), float(mean.mean())


def _class_ap(truths: Sequence[Truth], found: Sequence[Found], number: int) -> Floats:
    objects = 0
    scores: list[Floats] = []
    hits: list[NDArray[np.bool_]] = []
    for truth, detections in zip(truths, found, strict=True):
        boxes = truth.boxes[truth.classes == number]
        mine = detections.classes == number
        order = np.argsort(-detections.scores[mine], kind="stable")
        objects += len(boxes)
        scores.append(detections.scores[mine][order])
        hits.append(_match(detections.boxes[mine][order], boxes))
    ranked = np.argsort(-np.concatenate(scores), kind="stable")
    return _interpolated(np.concatenate(hits)[ranked], objects)


def _match(detections: Floats, objects: Floats) -> NDArray[np.bool_]:
    """(detections, thresholds): who finds an object. Best score first, each takes the free object it overlaps most."""
    hits = np.zeros((len(detections), len(IOU_THRESHOLDS)), bool)
    overlaps = iou(detections, objects)
    for column, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(objects), bool)
        for row, overlap in enumerate(overlaps):
            open_overlap = np.where(free, overlap, -1.0)
            if len(objects) and open_overlap.max() >= threshold:
                # Of equal overlaps the reference program takes the last.
                free[len(objects) - 1 - int(open_overlap[::-1].argmax())] = False
                hits[row, column] = True
    return hits


def _interpolated(hits: NDArray[np.bool_], objects: int) -> Floats:
    """Mean over RECALLS of the best precision at that recall or beyond, a threshold a column."""
    right = np.cumsum(hits, axis=0)
    recall = right / objects
    precision = right / np.arange(1, len(hits) + 1)[:, None]
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    result = np.zeros(hits.shape[1])
    for column in range(hits.shape[1]):
        at = np.searchsorted(recall[:, column], RECALLS, side="left")
        reached = at[at < len(hits)]
        result[column] = envelope[reached, column].sum() / len(RECALLS)
    return result


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union, (m, n), of boxes (m, 4) and (n, 4) as corners; 0 where both are empty."""
    low: Any = np.maximum(a[:, None, :2], b[None, :, :2])
    high: Any = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    sizes_a, sizes_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    union = sizes_a[:, None] + sizes_b[None] - shared
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap
