"""How well detections agree with the truth: COCO's mAP, precision and recall, and who is taken for whom.

mAP is COCO's (cocodataset.org, "Detection evaluation": greedy matching, 101 recall points, IoU 0.50 to 0.95) as
computed by faster-coco-eval. Precision and recall are given as YOLOv5 prints them: at IoU 0.5, at the one confidence
where the mean F1 of the classes is best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.errors import TrainerError
from trainer.matching import Floats, Ints, iou, match_by_overlap, match_by_score

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0, 1, 101)
CONFIDENCES: Floats = np.linspace(0, 1, 1000)
# As many as YOLOv5's suppression leaves in a picture; COCO's own 100 would cut crowded pictures.
MAX_DETECTIONS = 300
# What YOLOv5 draws in its table of confusion: detections that a person would be shown.
CONFUSION_CONFIDENCE = 0.25
CONFUSION_IOU = 0.45
# YOLOv5's best epoch is the one with the best such sum.
FITNESS_WEIGHTS = (0.1, 0.9)  # of mAP@0.5, mAP@0.5:0.95
# Width of the running mean over confidences, so that no lucky single threshold is called the best; YOLOv5's.
_SMOOTHING = 101


@dataclass(frozen=True)
class Truth:
    """Objects of one picture: boxes (n, 4) as corners in pixels, class numbers (n,)."""

    boxes: NDArray[Any]
    classes: NDArray[Any]


@dataclass(frozen=True)
class Found:
    """Detections in one picture: boxes (n, 4) as corners in the truth's pixels, class numbers (n,), scores (n,)."""

    boxes: NDArray[Any]
    classes: NDArray[Any]
    scores: NDArray[Any]


@dataclass(frozen=True)
class ClassScore:
    """One class that has objects; precision and recall at the confidence of `Scores.f1_conf`."""

    number: int
    name: str
    pictures: int  # with at least one such object
    objects: int
    precision: float
    recall: float
    map50: float
    map50_95: float


@dataclass(frozen=True)
class Curves:
    """At IoU 0.5, a row for each of `Scores.per_class`: by confidence (c,) and by recall (r,)."""

    confidences: Floats  # (c,)
    precision: Floats  # (k, c); 1 where nothing is that sure
    recall: Floats  # (k, c)
    f1: Floats  # (k, c)
    recalls: Floats  # (r,)
    precision_at_recall: Floats  # (k, r): the best precision at that recall or beyond; its mean is AP@0.5


@dataclass(frozen=True)
class Scores:
    """Means are over the classes that have objects; nan where none has."""

    map50: float
    map50_95: float
    precision: float
    recall: float
    f1: float
    f1_conf: float  # the confidence of the best mean F1
    pictures: int
    objects: int
    per_class: tuple[ClassScore, ...]
    curves: Curves
    confusion: Ints  # (classes + 1, classes + 1): [found as, is]; the last are "nothing found" and "nothing there"

    @property
    def fitness(self) -> float:
        """What the best epoch is chosen by: higher is better."""
        return FITNESS_WEIGHTS[0] * self.map50 + FITNESS_WEIGHTS[1] * self.map50_95


def evaluate(truths: Iterable[Truth], founds: Iterable[Found], names: Sequence[str]) -> Scores:
    """Scores of a whole set, a truth and a found for each picture; raises ValueError where they do not fit."""
    evaluation = Evaluation(names)
    for truth, found in zip(truths, founds, strict=True):
        evaluation.add(truth, found)
    return evaluation.scores()


class Evaluation:
    """Collects pictures as they come, then tells the scores of them all."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._truths: list[Truth] = []
        self._founds: list[Found] = []
        self._hits: list[NDArray[np.bool_]] = []
        self._confusion: Ints = np.zeros((len(self._names) + 1,) * 2, np.int64)

    def add(self, truth: Truth, found: Found) -> None:
        """One picture; raises ValueError for arrays that do not fit, classes without a name, numbers not finite."""
        where = f"picture {len(self._truths)}"
        truth = Truth(*self._checked(truth.boxes, truth.classes, f"{where}, truth"))
        boxes, classes = self._checked(found.boxes, found.classes, f"{where}, detections")
        scores = np.asarray(found.scores, np.float64)
        if scores.shape != classes.shape or not np.isfinite(scores).all():
            raise ValueError(f"{where}, detections: scores {scores.shape} for {len(classes)} boxes, finite expected")
        best = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
        found = Found(boxes[best], classes[best], scores[best])
        overlap = iou(found.boxes, truth.boxes)
        same = found.classes[:, None] == truth.classes[None]
        self._hits.append(match_by_score(np.where(same, overlap, 0.0), IOU_THRESHOLDS[0]) >= 0)
        self._confuse(truth, found, overlap)
        self._truths.append(truth)
        self._founds.append(found)

    def scores(self) -> Scores:
        """Of all pictures so far; raises TrainerError where faster-coco-eval is not installed."""
        of_truth = np.concatenate([np.empty(0, np.int64), *(truth.classes for truth in self._truths)])
        objects = np.bincount(of_truth, minlength=len(self._names))
        pictures = np.zeros(len(self._names), np.int64)
        for truth in self._truths:
            pictures[np.unique(truth.classes)] += 1
        present = [int(number) for number in np.flatnonzero(objects)]
        # (thresholds, recalls, classes)
        precision = _coco_precision(self._truths, self._founds, len(self._names))[:, :, present]
        ap = precision.mean(axis=1)
        curves = self._curves(present, objects, precision[0].T)
        mean_f1 = _smooth(curves.f1.mean(axis=0)) if present else np.zeros(len(CONFIDENCES))
        best = int(mean_f1.argmax())
        per_class = tuple(
            ClassScore(
                number=number,
                name=self._names[number],
                pictures=int(pictures[number]),
                objects=int(objects[number]),
                precision=float(curves.precision[row, best]),
                recall=float(curves.recall[row, best]),
                map50=float(ap[0, row]),
                map50_95=float(ap[:, row].mean()),
            )
            for row, number in enumerate(present)
        )
        return Scores(
            map50=_mean(score.map50 for score in per_class),
            map50_95=_mean(score.map50_95 for score in per_class),
            precision=_mean(score.precision for score in per_class),
            recall=_mean(score.recall for score in per_class),
            f1=_mean(curves.f1[:, best]),
            f1_conf=float(CONFIDENCES[best]),
            pictures=len(self._truths),
            objects=int(objects.sum()),
            per_class=per_class,
            curves=curves,
            confusion=self._confusion.copy(),
        )

    def _checked(self, boxes: ArrayLike, classes: ArrayLike, where: str) -> tuple[Floats, Ints]:
        corners, numbers = np.asarray(boxes, np.float64), np.asarray(classes).astype(np.int64)
        if numbers.ndim != 1 or corners.shape != (len(numbers), 4):
            raise ValueError(f"{where}: boxes {corners.shape} and classes {numbers.shape}; expected (n, 4) and (n,)")
        if not np.isfinite(corners).all():
            raise ValueError(f"{where}: boxes that are not finite")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self._names):
            raise ValueError(f"{where}: class {numbers.min()} to {numbers.max()}; there are {len(self._names)} names")
        return corners, numbers

    def _confuse(self, truth: Truth, found: Found, overlap: Floats) -> None:
        nothing = len(self._names)
        sure = found.scores >= CONFUSION_CONFIDENCE
        mates = match_by_overlap(overlap[sure], CONFUSION_IOU)
        is_class = np.append(truth.classes, nothing)[mates]  # -1, without an object, picks the last
        np.add.at(self._confusion, (found.classes[sure], is_class), 1)
        missed = np.delete(truth.classes, mates[mates >= 0])
        np.add.at(self._confusion, (np.full(len(missed), nothing), missed), 1)

    def _curves(self, present: Sequence[int], objects: Ints, precision_at_recall: Floats) -> Curves:
        classes = np.concatenate([np.empty(0, np.int64), *(found.classes for found in self._founds)])
        scores = np.concatenate([np.empty(0), *(found.scores for found in self._founds)])
        hits = np.concatenate([np.empty(0, bool), *self._hits])
        precision, recall = np.ones((2, len(present), len(CONFIDENCES)))
        for row, number in enumerate(present):
            mine = np.flatnonzero(classes == number)
            ranked = mine[np.argsort(-scores[mine], kind="stable")]
            right = np.append(0, np.cumsum(hits[ranked]))
            shown = np.searchsorted(-scores[ranked], -CONFIDENCES, side="right")  # detections at least that sure
            recall[row] = right[shown] / objects[number]
            np.divide(right[shown], shown, out=precision[row], where=shown > 0)
        both = precision + recall
        f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        return Curves(CONFIDENCES, precision, recall, f1, RECALLS, precision_at_recall)


def require_coco() -> None:
    """Raise TrainerError where mAP cannot be computed: before the minutes that it takes to detect, and not after."""
    if find_spec("faster_coco_eval") is None:
        raise TrainerError("mAP wants faster-coco-eval: pip install faster-coco-eval (the extra `train` has it)")


def _coco_precision(truths: Sequence[Truth], founds: Sequence[Found], classes: int) -> Floats:
    """Precision (thresholds, recalls, classes) as COCO's evaluation interpolates it; -1 for a class without objects."""
    require_coco()
    from faster_coco_eval import COCO, COCOeval_faster

    if not truths or not classes:
        return np.full((len(IOU_THRESHOLDS), len(RECALLS), classes), -1.0)
    boxes_of_truth = [truth.boxes for truth in truths]
    boxes_of_found = [found.boxes for found in founds]
    evaluation = COCOeval_faster(
        _coco(COCO, boxes_of_truth, [truth.classes for truth in truths], None, classes),
        _coco(COCO, boxes_of_found, [found.classes for found in founds], [found.scores for found in founds], classes),
        "bbox",
    )
    evaluation.params.iouThrs, evaluation.params.recThrs = IOU_THRESHOLDS, RECALLS
    evaluation.params.maxDets = [MAX_DETECTIONS]
    # No scores by size of object. From below zero, as COCO ignores what is outside the range, and a detection turned
    # inside out is a wrong one.
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[-1e10, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]
    return precision


def _coco(
    kind: Any, boxes: Sequence[Floats], classes: Sequence[Ints], scores: Sequence[Floats] | None, number: int
) -> Any:
    """The library's view of boxes: COCO's records, as a file of annotations would hold them, numbered from 1."""
    annotations: list[dict[str, object]] = []
    for picture, corners in enumerate(boxes):
        sides = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
        for row, (box, class_number) in enumerate(zip(sides.tolist(), classes[picture].tolist(), strict=True)):
            annotation: dict[str, object] = {
                "id": len(annotations) + 1,
                "image_id": picture,
                "category_id": class_number,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            if scores is not None:
                annotation["score"] = float(scores[picture][row])
            annotations.append(annotation)
    images = [{"id": picture} for picture in range(len(boxes))]
    return kind({"images": images, "annotations": annotations, "categories": [{"id": n} for n in range(number)]})


def _smooth(values: Floats) -> Floats:
    """Running mean of _SMOOTHING values; beyond the ends the last value goes on."""
    padded = np.pad(values, _SMOOTHING // 2, mode="edge")
    return np.convolve(padded, np.full(_SMOOTHING, 1 / _SMOOTHING), mode="valid")


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")
