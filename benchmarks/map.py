"""`python -m benchmarks.map`: a model's mAP through the product's own detector, square and rectangular.

Settings are those accuracy is published with: every candidate above 0.001, NMS at IoU 0.6, 300 boxes a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import structlog
from rich.console import Console
from rich.progress import track

from benchmarks.average_precision import Found, Truth, average_precision, mean_average_precision
from benchmarks.yolo_dataset import BadDataset, image_paths, pictures
from detector.detector import Detector
from detector.errors import DetectorError
from detector.settings import DetectorSettings
from wire.messages import Detection

CONF_THRES, IOU_THRES, MAX_DETECTIONS = 0.001, 0.6, 300


@dataclass(frozen=True)
class Score:
    """Accuracy of one model with one kind of letterbox."""

    model: str
    engine: str
    letterbox: str
    pictures: int
    objects: int
    shapes: list[str]
    map50: float
    map50_95: float


def score(model: Path, engine: str, folder: Path, *, rectangular: bool, aspect: float | None) -> Score:
    """Detect on every picture of the folder; raises DetectorError or BadDataset."""
    settings = {"model": str(model), "engine": engine, "rectangular": rectangular}
    settings |= {"conf_thres": CONF_THRES, "iou_thres": IOU_THRES, "max_detections": MAX_DETECTIONS}
    detector = Detector.load(DetectorSettings.model_validate(settings))
    kind = "rectangular" if rectangular else "square"
    truths: list[Truth] = []
    found: list[Found] = []
    steps = track(
        pictures(folder, aspect), f"{model.name}, {kind}", len(image_paths(folder)), console=Console(stderr=True)
    )
    for picture, truth in steps:
        truths.append(truth)
        found.append(_found(detector.detect_image(picture)))
    map50, map50_95 = mean_average_precision(average_precision(truths, found))
    objects = sum(len(truth.classes) for truth in truths)
    described = detector.describe()
    return Score(model.name, described["engine"], kind, len(truths), objects, described["compiled"], map50, map50_95)


def _found(detections: list[Detection]) -> Found:
    return Found(
        np.array([it.box for it in detections], np.float64).reshape(-1, 4),
        np.array([it.class_id for it in detections], np.int64),
        np.array([it.score for it in detections], np.float64),
    )


def main() -> None:
    """Print a line a score, or JSON; exit 2 with the reason where the model or the data cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="ONNX file, or a YOLOv5 checkpoint (.pt)")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/ in YOLO's format")
    parser.add_argument("--engine", default="auto", help="as in the settings (default %(default)s)")
    parser.add_argument("--letterbox", choices=("square", "rectangular", "both"), default="both")
    parser.add_argument("--aspect", type=_aspect, help="cut the middle of each picture to this form, such as 16:9")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    kinds = {"square": [False], "rectangular": [True], "both": [False, True]}[options.letterbox]
    try:
        scores = [
            score(model, options.engine, options.data, rectangular=kind, aspect=options.aspect)
            for model in options.models
            for kind in kinds
        ]
    except (DetectorError, BadDataset) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if options.json:
        print(json.dumps([asdict(it) for it in scores], indent=2))
        return
    print(f"{'mAP@0.5':>8} {'@0.5:0.95':>9} {'pictures':>8} {'objects':>7}  letterbox (shapes)")
    for it in scores:
        print(
            f"{it.map50:8.4f} {it.map50_95:9.4f} {it.pictures:8d} {it.objects:7d}  "
            f"{it.letterbox} ({', '.join(it.shapes)}), {it.engine}, {it.model}"
        )


def _aspect(text: str) -> float:
    width, _, height = text.partition(":")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WIDTH:HEIGHT, such as 16:9, found {text}")
    return int(width) / int(height)


if __name__ == "__main__":
    main()
