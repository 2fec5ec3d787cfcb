"""A model's accuracy as the live path has it, from its preprocessing to its NMS, scored by COCO's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.detector import Detector
from detector.settings import DetectorSettings
from services.training import CONF_THRES, IOU_THRES, MAX_DETECTIONS, MissingExtra
from trainer.card import Score
from trainer.errors import DataError
from wire.messages import Detection

# The pictures done of all pictures, after each.
Progress = Callable[[int, int], None]
# The model, the engine, the data.yaml, progress: its score.
Scorer = Callable[[Path, str, Path, Progress], Score]


def score(model: Path, engine: str, data: Path, progress: Progress) -> Score:
    """Detect on every picture of the data's `val`; raises DetectorError, DataError or MissingExtra."""
    try:
        from trainer.data.config import read_data
        from trainer.data.labels import label_path, read_labels
        from trainer.metrics import Evaluation, Found, Truth
    except ImportError as error:
        raise MissingExtra(error) from error
    config = read_data(data)
    wanted = {"model": str(model), "engine": engine, "conf_thres": CONF_THRES, "iou_thres": IOU_THRES}
    detector = Detector.load(DetectorSettings.model_validate({**wanted, "max_detections": MAX_DETECTIONS}))
    _check_classes(detector, config.names, data)
    evaluation = Evaluation(config.names)
    for number, path in enumerate(config.val, start=1):
        picture = cv2.imread(str(path))
        if picture is None:
            raise DataError(f"{path}: not a picture that can be read; `sparsecam data check` lists all that is wrong")
        height, width = picture.shape[:2]
        rows = read_labels(label_path(path), len(config.names))
        centres, halves = rows[:, 1:3], rows[:, 3:5] / 2
        corners = np.concatenate([centres - halves, centres + halves], 1) * np.array([width, height, width, height])
        evaluation.add(
            Truth(corners, rows[:, 0]), Found(*_arrays(detector.detect_image(np.asarray(picture, np.uint8))))
        )
        progress(number, len(config.val))
    scores = evaluation.scores()
    if not scores.objects:
        raise DataError(f"{data}: its `val` has {len(config.val)} pictures and no object; nothing can be scored on it")
    return Score(
        file=model.name,
        engine=detector.choice.engine,
        map50=round(scores.map50, 6),
        map50_95=round(scores.map50_95, 6),
        pictures=scores.pictures,
        objects=scores.objects,
    )


def _check_classes(detector: Detector, names: tuple[str, ...], data: Path) -> None:
    """Classes are compared by number: with other ones the score would be of something else."""
    found = [detector.labels[number] for number in sorted(detector.labels)]
    if found and found != list(names):
        raise DataError(
            f"{data}: its classes are {', '.join(names)}, but {detector.model_name} finds {', '.join(found)}"
        )


def _arrays(detections: list[Detection]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return (
        np.array([it.box for it in detections], np.float64).reshape(-1, 4),
        np.array([it.class_id for it in detections], np.int64),
        np.array([it.score for it in detections], np.float64),
    )
