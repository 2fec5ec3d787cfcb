"""A model file's accuracy on a data set, through the live path: its letterbox, its engine, its NMS."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.detector import Detector, Frame
from detector.settings import DetectorSettings
from services.training import CONF_THRES, IOU_THRES, MAX_DETECTIONS
from trainer.data.labels import label_path, read_labels
from trainer.data.pictures import read_image
from trainer.errors import DataError
from trainer.metrics import Evaluation, Found, Scores, Truth, require_coco
from wire.messages import Detection

# An object of which a crop leaves less than this share cannot be asked for.
_LEFT_BY_CROP = 0.5


@dataclass(frozen=True)
class Question:
    """What a model is asked: pictures with labels beside them, and the classes by number."""

    pictures: Sequence[Path]
    names: Sequence[str]
    image_size: tuple[int, int] | None = None  # full input (height, width) in pixels; None: the model's own
    rectangular: bool = True  # less padding where the picture is no square, as live cameras have it
    batch: int = 1  # pictures at once
    num_cores: int = 1
    aspect: float | None = None  # width / height: only the middle of each picture, of that form


@dataclass(frozen=True)
class Answer:
    """One model on one engine."""

    model: str
    engine: str
    scores: Scores
    engine_ms: float  # median of a run of the engine, for `batch` pictures
    shapes: list[str]  # HEIGHTxWIDTH compiled, those still in the cache
    notes: list[str]  # what a reader of the scores should know


def accuracy(
    model: Path, engine: str, question: Question, each: Callable[[], None] = lambda: None, cache_dir: Path | None = None
) -> Answer:
    """Detect on every picture at the settings that accuracy is published with; `each` is called after each picture.

    Raises DetectorError, DataError (also where classes do not fit), TrainerError where faster-coco-eval is missing.
    """
    require_coco()
    settings: dict[str, Any] = {"model": str(model), "engine": engine, "cache_dir": cache_dir}
    settings |= {"conf_thres": CONF_THRES, "iou_thres": IOU_THRES, "max_detections": MAX_DETECTIONS}
    settings |= {"rectangular": question.rectangular, "image_shape": question.image_size, "batch": question.batch}
    detector = Detector.load(DetectorSettings.model_validate(settings), question.num_cores)
    numbers, notes = _numbers(detector.labels, question.names, model.name)
    evaluation = Evaluation(question.names)
    times_ms: list[float] = []
    for truth, detections in _detected(detector, question, times_ms):
        evaluation.add(truth, _found(detections, numbers))
        each()
    described = detector.describe()
    return Answer(
        model=model.name,
        engine=described["engine"],
        scores=evaluation.scores(),
        engine_ms=round(statistics.median(times_ms), 3) if times_ms else 0.0,
        shapes=described["compiled"],
        notes=notes,
    )


def _detected(detector: Detector, question: Question, times_ms: list[float]) -> Iterator[tuple[Truth, list[Detection]]]:
    """Truth and detections of each picture; those of one shape go together, `detector.batch` at once."""
    waiting: dict[tuple[int, int], list[tuple[Truth, Frame]]] = defaultdict(list)

    def run(some: list[tuple[Truth, Frame]]) -> Iterator[tuple[Truth, list[Detection]]]:
        found = detector.detect_batch([frame for _, frame in some])
        times_ms.append(detector.last.engine_ms)
        yield from zip((truth for truth, _ in some), found, strict=True)

    for path in question.pictures:
        picture, truth = read_picture(path, len(question.names), question.aspect)
        frame = detector.fit(picture)
        some = waiting[frame[0].height, frame[0].width]
        some.append((truth, frame))
        if len(some) == detector.batch:
            yield from run(some)
            some.clear()
    for some in waiting.values():
        for one in some:
            yield from run([one])


def read_picture(path: Path, classes: int, aspect: float | None = None) -> tuple[NDArray[np.uint8], Truth]:
    """A picture as BGR and its objects in its pixels, or the middle of it of that form; raises DataError."""
    pixels = read_image(path)
    if pixels is None:
        raise DataError(f"{path}: missing, or not a picture; `sparsecam data check` lists all that is wrong")
    height, width = pixels.shape[:2]
    rows = read_labels(label_path(path), classes).astype(np.float64)
    centres, halves = rows[:, 1:3], rows[:, 3:5] / 2
    boxes = np.hstack([centres - halves, centres + halves]) * (width, height, width, height)
    truth = Truth(boxes, rows[:, 0].astype(np.int64))
    return cut(pixels, truth, aspect) if aspect else (pixels, truth)


def cut(picture: NDArray[np.uint8], truth: Truth, aspect: float) -> tuple[NDArray[np.uint8], Truth]:
    """The largest middle part of width / height = `aspect`; objects cut to it, and left out where little remains."""
    height, width = picture.shape[:2]
    new_height, new_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    boxes = np.clip(truth.boxes - (left, top, left, top), 0, (new_width, new_height) * 2)
    kept = _area(boxes) >= _LEFT_BY_CROP * _area(truth.boxes)
    part = picture[top : top + new_height, left : left + new_width]
    return np.ascontiguousarray(part), Truth(boxes[kept], truth.classes[kept])


def _area(boxes: NDArray[Any]) -> NDArray[Any]:
    area: NDArray[Any] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return area


def _numbers(labels: dict[int, str], names: Sequence[str], model: str) -> tuple[dict[int, int], list[str]]:
    """The data set's class by the model's, and what to tell of it: by number, else by name. Raises DataError."""
    mine = [labels[number] for number in sorted(labels)]
    if len(mine) == len(names):
        differ = [f"{own} is {name}" for own, name in zip(mine, names, strict=True) if own.lower() != name.lower()]
        return {number: number for number in range(len(names))}, (
            [f"classes taken by number, though names differ: {', '.join(differ[:5])}"] if differ else []
        )
    by_name = {name.lower(): number for number, name in enumerate(names)}
    numbers = {number: by_name[label.lower()] for number, label in labels.items() if label.lower() in by_name}
    if len(numbers) < len(names):
        missing = [name for name in names if name.lower() not in {label.lower() for label in mine}]
        raise DataError(
            f"{model} finds {len(mine)} classes, the data set has {len(names)}, of which the model does not know "
            f"{', '.join(missing[:5])}; expected the same classes, or a data set whose classes the model knows by name"
        )
    return numbers, [f"{len(names)} of the model's {len(mine)} classes are in the data set, taken by name"]


def _found(detections: Sequence[Detection], numbers: dict[int, int]) -> Found:
    kept = [it for it in detections if it.class_id in numbers]
    return Found(
        np.array([it.box for it in kept], np.float64).reshape(-1, 4),
        np.array([numbers[it.class_id] for it in kept], np.int64),
        np.array([it.score for it in kept], np.float64),
    )
